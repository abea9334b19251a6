"""`contrast init`: look at images, ask what they cannot say, measure the machine, choose settings, write a project."""
