"""A policy acts, the scripted picker puts right what goes wrong, and the corrections are demos (DAgger)."""
