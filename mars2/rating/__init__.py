"""People rate the images of a run on a local page, blind, into a file that studies read.

`plan` says which questions each rater gets and in which order, `database` keeps them and the
answers, `server` shows the page, `export` writes what `mars2 study humans` takes.
"""
