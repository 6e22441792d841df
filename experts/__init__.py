"""The grounding experts, one module each. `experts.base` has what they share; `experts.registry` finds them by name."""
