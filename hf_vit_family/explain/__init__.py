"""Pictures of what a model looks at, and plots of what was measured."""
