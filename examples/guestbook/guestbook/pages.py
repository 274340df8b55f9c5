"""HTML. Everything that a visitor wrote is escaped here and nowhere else."""

from html import escape

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Guestbook</title>
<style>
  body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 2rem auto; padding: 0 1rem }}
  label, input, textarea {{ display: block; width: 100%; box-sizing: border-box }}
  article {{ border-top: 1px solid #ccc; padding: .5rem 0 }}
  footer {{ color: #666; font-size: .8rem }}
  p {{ white-space: pre-wrap; overflow-wrap: anywhere }}
</style>
</head>
<body>
<h1>Guestbook</h1>
{body}
<footer>version {version}</footer>
</body>
</html>
"""

_FORM = """<form method="post" action="/entries">
<label>Name <input name="author" maxlength="80" required></label>
<label>Message <textarea name="message" rows="3" maxlength="1000" required></textarea></label>
<button>Sign</button>
</form>"""

_ENTRY = """<article>
<strong>{author}</strong> <time datetime="{when}">{day}</time>
<p>{message}</p>
</article>"""


def entries(entries, version):
    body = [_FORM]
    for entry in entries:
        body.append(
            _ENTRY.format(
                author=escape(entry.author),
                message=escape(entry.message),
                when=entry.created_at.isoformat(),
                day=entry.created_at.strftime("%Y-%m-%d"),
            )
        )
    if len(body) == 1:
        body.append("<p>Nobody has signed yet.</p>")
    return _PAGE.format(body="\n".join(body), version=escape(version))


def problem(text, version):
    return _PAGE.format(body=f"<p>{escape(text)}</p>", version=escape(version))
