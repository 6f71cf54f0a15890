"""A server: texts over HTTP for the usual clients, and a page that shows the inside of the model (the extra `serve`).

`scheduler.py` and what it uses know nothing of HTTP; `app.py` and the routes import no PyTorch before the
model is loaded.
"""
