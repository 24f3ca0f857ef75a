"""The machine: devices, clocks, and who else uses them."""
