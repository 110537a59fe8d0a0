"""Names that moved to `rtsim.fit`, for imports that have not moved yet."""

from rtsim.fit import Array, Fit, fit_coefficients, select_rows

__all__ = ["Array", "Fit", "fit_coefficients", "select_rows"]
