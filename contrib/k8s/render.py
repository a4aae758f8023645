#!/usr/bin/env python3
"""Reads the manifests and renders the chart with its values, strictly: prints all documents as one JSON object by file name.

Knows the part of helm's templates that the chart uses; anything else, a value that is not there, and YAML that says a key twice are
errors. It stands in for `helm lint`, which Debian does not have.
"""

import json
import pathlib
import re
import sys

import yaml


class Strict(yaml.SafeLoader):
    """Refuses a mapping that has a key twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        if len(keys) != len(set(keys)):
            raise yaml.constructor.ConstructorError(None, None, f"a key is there twice: {keys}", node.start_mark)
        return super().construct_mapping(node, deep)


def load(text):
    return yaml.load(text, Loader=Strict)


def render(text, scope):
    def value(path):
        found = scope
        for name in path.split("."):
            found = found[name]
        return found

    def replaced(match):
        dash, inside = match.group(1), match.group(2).strip()
        plain = re.fullmatch(r"\.([A-Za-z.]+)", inside)
        nested = re.fullmatch(r"toYaml \.([A-Za-z.]+) \| nindent (\d+)", inside)
        if plain and not dash:
            found = value(plain.group(1))
            if isinstance(found, (dict, list)) or found is None:
                raise ValueError(f"{inside} is no scalar")
            return str(found)
        if nested and dash:
            lines = yaml.safe_dump(value(nested.group(1)), default_flow_style=False).rstrip("\n").split("\n")
            return "\n" + "\n".join(" " * int(nested.group(2)) + line for line in lines)
        raise ValueError(f"not a template that is known here: {match.group(0)!r}")

    # `{{-` takes the white space before it.
    return re.sub(r"(?:\s*\{\{(-)|\{\{)(.*?)\}\}", replaced, text)


def main():
    base = pathlib.Path(sys.argv[1])
    chart = load((base / "chart/Chart.yaml").read_text())
    values = load((base / "chart/values.yaml").read_text())
    scope = {"Values": values, "Chart": chart, "Release": {"Service": "Helm", "Namespace": "kube-system", "Name": "towline"}}
    documents = {"chart/Chart.yaml": chart}
    for path in sorted(base.glob("*.yaml")):
        documents[path.name] = load(path.read_text())
    for path in sorted((base / "chart/templates").glob("*.yaml")):
        documents[f"chart/templates/{path.name}"] = load(render(path.read_text(), scope))
    json.dump(documents, sys.stdout)


main()
