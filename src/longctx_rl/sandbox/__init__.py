"""Grading generated Python code without trusting it.

The trusted side keeps the expected values; the child process receives code and inputs and returns plain data. Nothing
else counts: neither its exit status, nor what it prints, nor an object of its own making. Whatever a candidate does to
its own process, it can pass only by returning the right values for inputs it has not seen.
"""
