"""Figures made by this project, and the code that draws them."""
