"""
The commands of `vit-family`, one module each: `add_arguments(parser)` declares options, `run(args)` does the work.
"""
