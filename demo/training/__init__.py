"""How the small models are trained; `python -m demo.train` is the command."""
