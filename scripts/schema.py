"""Write the JSON Schema of config.json, src/sobre/schemas/config.schema.json, from the `Recipe` class.

Run it after changing a configuration class; a test compares.
"""

import json
from pathlib import Path

from pydantic import TypeAdapter

from sobre.config.recipe import Recipe
from sobre.schemas import VERSION

TARGET = Path(__file__).resolve().parent.parent / "src" / "sobre" / "schemas" / "config.schema.json"


def text() -> str:
    """The schema, with the version that every document of ours carries."""
    schema = TypeAdapter(Recipe).json_schema()
    properties = {"schema": {"const": VERSION}, **schema.pop("properties")}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "config.json of a run"}
    body = {**schema, **head, "properties": properties, "required": list(properties)}
    return json.dumps({**head, **body}, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
