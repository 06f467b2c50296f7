"""Exact values that results are compared with: each module has the closed forms of one subject, in float64."""
