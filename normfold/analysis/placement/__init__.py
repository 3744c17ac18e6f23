"""Where the scale and the shift of one norm go, and what that costs."""
