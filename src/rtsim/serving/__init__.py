"""Serving many requests at once: what an engine's steps cost and what its users wait.

`scheduler` says how a stack fills its steps, `engine` joins that with the operator model of one
system, `steady` gives the mean of a closed loop in closed form, `simulate` plays a trace.
"""
