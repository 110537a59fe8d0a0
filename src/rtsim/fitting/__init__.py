"""Fit recipes: measurement tables into kernel inputs and fitted coefficients."""
