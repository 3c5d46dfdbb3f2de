"""The web server of ``recsys serve``: messages, limits, routes, the page. Needs the extra ``serve``."""
