"""Running generated Python without believing it.

The trusted side keeps expected values; the child gets code and inputs and hands back plain data. Nothing else counts:
not its exit status, not what it prints, not an object of its own making. So whatever a candidate does to its own
process, it can only pass by returning the right values for inputs it has not seen.
"""
