"""What the guest's agent does for its host beside the run: programs, files, ports, terminals.

Nothing of it is imported by a plain run.
"""
