"""Commands of `trainer`; torch and Ray are imported inside them."""
