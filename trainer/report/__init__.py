"""The methods as tables and figures know them."""
