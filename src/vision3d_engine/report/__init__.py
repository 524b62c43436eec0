"""What a run has left, as something to look at: one page of HTML, and clouds as pictures. Nothing here trains."""
