"""Figures that training and evaluation both need."""
