"""What computes, with torch alone.

A folder may use those before it: functional, engine, references, subjects, families, adapters, methods.
"""
