"""The study as a value: a pure fold over events, and the rules that decide them."""
