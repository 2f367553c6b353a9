"""Plant porters' mistakes one by one. Each must be caught, and the right name blamed."""
