"""The benchmarks behind `ivm-mix bench`, one module for each figure of its page."""
