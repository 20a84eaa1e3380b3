"""`bayesd why`: what led to a trial, to the end of a study, to an idle worker, for people who are no experts.

`witness` keeps what the log says; `trial`, `study` and `worker` make a page of it, a dictionary ready
for JSON; `words` writes a page as text. Only the first needs the daemon's parts: a client that was
sent a page needs `words` and `chart` alone, so nothing is imported here.
"""
