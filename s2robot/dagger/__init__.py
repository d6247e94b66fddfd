"""DAgger: a policy acts, the scripted picker corrects its mistakes, and the corrections become demos."""
