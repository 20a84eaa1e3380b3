"""What mattered in a study: which parameters, which pairs, where the winner's lead came from, and what to be wary of.

Everything here is a function of what a study has measured, for people, and decides nothing. `asked`
reads a question and answers it; `belief` is the model that is asked; the other modules are one kind of answer each.
"""
