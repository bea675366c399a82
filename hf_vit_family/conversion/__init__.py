"""
Checkpoints of other libraries to models of this one, and back: rules, files, preprocessing, and the proof that outputs
are equal.
"""
