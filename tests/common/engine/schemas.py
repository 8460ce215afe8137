"""JSON schemas from simple to nasty."""

STRING = {"type": "string", "maxLength": 12}
INTEGER = {"type": "integer", "minimum": -999, "maximum": 9999}


def closed(**properties):
    """An object with exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMAS = {
    "string": STRING,
    "integer": INTEGER,
    "number": {"type": "number", "minimum": 0, "maximum": 1},
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "types": {"type": ["integer", "null", "boolean"]},
    "empty object": {"type": "object", "additionalProperties": False},
    "flat": closed(name=STRING, age=INTEGER),
    "nested": closed(a=closed(b=closed(c=closed(d=INTEGER)))),
    "optional": {
        "type": "object",
        "properties": {"a": INTEGER, "b": STRING, "c": {"type": "boolean"}},
        "required": ["b"],
        "additionalProperties": False,
    },
    "all optional": {
        "type": "object",
        "properties": dict.fromkeys("abcdefgh", INTEGER),
        "additionalProperties": False,
    },
    "map": {"type": "object", "additionalProperties": INTEGER, "maxProperties": 3},
    "map of at least two": {
        "type": "object",
        "additionalProperties": {"type": "boolean"},
        "minProperties": 2,
        "maxProperties": 4,
    },
    "patterned keys": {
        "type": "object",
        "patternProperties": {"^[a-c]{2}$": INTEGER},
        "additionalProperties": False,
        "maxProperties": 2,
    },
    "array": {"type": "array", "items": INTEGER, "maxItems": 5},
    "array of 2 to 4": {"type": "array", "items": STRING, "minItems": 2, "maxItems": 4},
    "matrix": {
        "type": "array",
        "items": {"type": "array", "items": INTEGER, "minItems": 2, "maxItems": 2},
        "minItems": 2,
        "maxItems": 2,
    },
    "tuple": {
        "type": "array",
        "prefixItems": [INTEGER, STRING, {"type": "boolean"}],
        "items": False,
        "minItems": 3,
    },
    "tuple with rest": {
        "type": "array",
        "prefixItems": [{"const": "head"}],
        "items": INTEGER,
        "minItems": 1,
        "maxItems": 4,
    },
    "enum": {"enum": ["red", "green", 3, None, {"deep": [1, "é"]}]},
    "const": {"const": {"a": [1, 2.5, "ü"], "b": None}},
    "enum of unicode": {"enum": ["größe", "日本語", "😀", '"quoted"', "a\\b\n"]},
    "unicode keys": closed(
        **{"größe": INTEGER, "日本": {"type": "boolean"}, 'a"b': {"type": "null"}}
    ),
    "anyOf": {"anyOf": [INTEGER, STRING, {"type": "null"}]},
    "anyOf of objects": {"anyOf": [closed(kind={"const": "a"}, x=INTEGER), closed(y=STRING)]},
    "oneOf by tag": {
        "oneOf": [
            closed(kind={"const": "cat"}, lives=INTEGER),
            closed(kind={"const": "dog"}, tricks={"type": "array", "items": STRING, "maxItems": 2}),
        ]
    },
    "allOf": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 9}]},
    "allOf of objects": {
        "allOf": [
            {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]},
            {"type": "object", "properties": {"b": STRING}, "required": ["b"]},
        ],
        "maxProperties": 2,
    },
    "ref": {"$defs": {"point": closed(x=INTEGER, y=INTEGER)}, "$ref": "#/$defs/point"},
    "refs": {
        "definitions": {"id": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{3}$"}},
        **closed(a={"$ref": "#/definitions/id"}, b={"$ref": "#/definitions/id"}),
    },
    "linked list": {
        "$defs": {
            "node": closed(
                value=INTEGER, next={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}
            )
        },
        "$ref": "#/$defs/node",
    },
    "tree": {
        "$defs": {
            "tree": closed(
                v={"type": "boolean"},
                children={"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2},
            )
        },
        "$ref": "#/$defs/tree",
    },
    "mutual recursion": {
        "$defs": {
            "a": {"type": "array", "items": {"$ref": "#/$defs/b"}, "maxItems": 2},
            "b": {"anyOf": [{"type": "boolean"}, {"$ref": "#/$defs/a"}]},
        },
        "$ref": "#/$defs/a",
    },
    "pattern": {"type": "string", "pattern": "^[a-f0-9]{4}-[a-f0-9]{4}$"},
    "pattern anywhere": {"type": "string", "pattern": "x+y", "maxLength": 40},
    "pattern of choices": {"type": "string", "pattern": "^(foo|ba[rz])+$", "maxLength": 20},
    "date-time": {"type": "string", "format": "date-time"},
    "date and time": closed(
        d={"type": "string", "format": "date"}, t={"type": "string", "format": "time"}
    ),
    "uuid": {"type": "string", "format": "uuid"},
    "ipv4 and email": closed(
        ip={"type": "string", "format": "ipv4"},
        mail={"type": "string", "format": "email", "maxLength": 60},
    ),
    "lengths": {"type": "string", "minLength": 5, "maxLength": 9},
    "no length": closed(s={"type": "string", "maxLength": 0}),
    "exclusive bounds": {"type": "integer", "exclusiveMinimum": 10, "exclusiveMaximum": 13},
    "negative fractions": {"type": "number", "exclusiveMinimum": -2.5, "maximum": -1.25},
    "multiples": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 700},
    "required of additional": {
        "type": "object",
        "properties": {"a": INTEGER},
        "required": ["a", "z"],
        "additionalProperties": {"type": "boolean"},
        "maxProperties": 3,
    },
    "escaped ref": {
        "$defs": {"a/b~c": {"type": "boolean"}},
        "type": "array",
        "items": {"$ref": "#/$defs/a~1b~0c"},
        "maxItems": 3,
    },
    "titles and defaults": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "T",
        "description": "d",
        "default": {"a": 1},
        "examples": [{"a": 2}],
        **closed(a={"title": "A", "format": "int32", **INTEGER}),
    },
    "pydantic": {
        "$defs": {"Color": {"enum": ["red", "blue"], "title": "Color", "type": "string"}},
        **closed(
            color={"$ref": "#/$defs/Color"},
            size={"anyOf": [INTEGER, {"type": "null"}], "default": None},
            tags={"type": "array", "items": STRING, "maxItems": 2},
        ),
        "title": "Thing",
    },
    "false property": {
        "type": "object",
        "properties": {"a": INTEGER, "never": False},
        "required": ["a"],
        "additionalProperties": False,
    },
    "keywords as names": closed(type=INTEGER, properties=INTEGER, enum={"type": "boolean"}),
    "many properties": closed(**{f"field_{i}": {"type": "boolean"} for i in range(12)}),
    "big enum": {"enum": [f"value {i}" for i in range(3000)]},
}
