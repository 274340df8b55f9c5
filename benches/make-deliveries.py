#!/usr/bin/env python3
"""Writes signed GitHub push deliveries, each of another commit, for a load test.

    make-deliveries.py --secret SECRET [--count N] [--repository owner/name] [--branch main] [--padding BYTES] > deliveries.tsv

One delivery a line: `delivery id <TAB> X-Hub-Signature-256 <TAB> body`. The body is JSON on one line, shaped as GitHub's push
event (https://docs.github.com/webhooks/webhook-events-and-payloads#push). The same arguments write the same bytes.
"""

import argparse
import hashlib
import hmac
import json
import sys
import uuid

ZERO = "0" * 40

# What follows a repository's API address in its `…_url` fields: most of a real body, which has 7 to 10 KB.
API_PATHS = """forks keys collaborators teams hooks issue_events events assignees branches tags blobs git_tags git_refs trees
statuses languages stargazers contributors subscribers subscription commits git_commits comments issue_comment contents
compare merges archive downloads issues pulls milestones notifications labels releases deployments""".split()
USER_PATHS = """followers following gists starred subscriptions organizations repos events received_events""".split()


def commit_id(seed):
    return hashlib.sha1(seed.encode()).hexdigest()


def user(login, number):
    api = f"https://api.github.example/users/{login}"
    return {
        "login": login,
        "id": number,
        "node_id": f"MDQ6VXNlcj{number}==",
        "avatar_url": f"https://avatars.github.example/u/{number}?v=4",
        "html_url": f"https://github.example/{login}",
        "type": "User",
        "site_admin": False,
        **{f"{path}_url": f"{api}/{path}{{/name}}" for path in USER_PATHS},
    }


def repository_object(full_name, branch, url):
    owner, name = full_name.split("/", 1)
    api = f"https://api.github.example/repos/{full_name}"
    return {
        "id": 1,
        "node_id": "R_kgDOAAAAAQ",
        "name": name,
        "full_name": full_name,
        "private": True,
        "owner": user(owner, 1),
        "html_url": url,
        "clone_url": f"{url}.git",
        "ssh_url": f"git@github.example:{full_name}.git",
        "default_branch": branch,
        "description": None,
        "fork": False,
        "url": api,
        **{f"{path}_url": f"{api}/{path.replace('_', '/')}{{/number}}" for path in API_PATHS},
    }


def push(number, repository, branch, padding):
    before = commit_id(f"commit {number - 1}") if number else ZERO
    after = commit_id(f"commit {number}")
    url = f"https://github.example/{repository}"
    person = {"name": "Ada Example", "email": "ada@example.org", "username": "ada"}
    commit = {
        "id": after,
        "tree_id": commit_id(f"tree {number}"),
        "distinct": True,
        "message": f"Change number {number}" + ("\n\n" + "x" * padding if padding else ""),
        "timestamp": "2026-05-04T10:00:00Z",
        "url": f"{url}/commit/{after}",
        "author": person,
        "committer": person,
        "added": [],
        "removed": [],
        "modified": ["index.html"],
    }
    return {
        "ref": f"refs/heads/{branch}",
        "before": before,
        "after": after,
        "created": not number,
        "deleted": False,
        "forced": False,
        "base_ref": None,
        "compare": f"{url}/compare/{before[:12]}...{after[:12]}",
        "commits": [commit],
        "head_commit": commit,
        "repository": repository_object(repository, branch, url),
        "pusher": {"name": "ada", "email": "ada@example.org"},
        "sender": user("ada", 2),
    }


def main():
    parser = argparse.ArgumentParser(description="Writes signed GitHub push deliveries, one a line.")
    parser.add_argument("--secret", required=True, help="what the bodies are signed with; made for the test alone")
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--repository", default="acme/guestbook")
    parser.add_argument("--branch", default="main")
    parser.add_argument("--padding", type=int, default=0, help="characters added to each commit's message")
    chosen = parser.parse_args()
    if chosen.repository.count("/") != 1:
        parser.error("--repository is owner/name")
    secret = chosen.secret.encode()
    for number in range(chosen.count):
        body = json.dumps(push(number, chosen.repository, chosen.branch, chosen.padding), separators=(",", ":"))
        signature = hmac.new(secret, body.encode(), hashlib.sha256).hexdigest()
        delivery = uuid.uuid5(uuid.NAMESPACE_URL, f"{chosen.repository}/{number}")
        sys.stdout.write(f"{delivery}\tsha256={signature}\t{body}\n")


if __name__ == "__main__":
    main()
