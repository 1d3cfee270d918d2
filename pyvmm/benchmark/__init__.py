"""Benchmarks in microVMs: run them, read their numbers, judge, compare and export them.

Data flows: runner ─► Report (model.py) ─► statistics ─► bars, plot, html, compare, export. A run of
``pyvmm run`` imports none of it.
"""
