"""Ranges of numbers, as annotations that pydantic checks: for options of parts and for records."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

UnitInterval = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Momentum = Annotated[float, Field(ge=0, le=1)]
