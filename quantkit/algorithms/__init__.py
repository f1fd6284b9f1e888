"""Algorithms: pure functions of weights, scales and statistics, one file each."""
