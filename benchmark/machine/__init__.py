"""The machine: devices, memory, clocks, and other processes that use them."""
