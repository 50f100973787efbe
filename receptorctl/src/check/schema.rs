//! Whether a plugin's example fits its own schema.
//!
//! Owns the part of JSON Schema that descriptions of payloads use: `type`, `enum`, `const`, `required`,
//! `properties`, `additionalProperties: false`, `items`. Other words are passed over, so that a mistake is never
//! found where there is none.

use serde_json::Value;

/// How deep a schema is followed; deeper parts are taken to fit.
const MAX_DEPTH: usize = 64;

/// What of the value breaks the schema, with its place.
pub(super) fn problem(schema: &Value, value: &Value) -> Option<String> {
    at("the example", schema, value, MAX_DEPTH)
}

fn at(place: &str, schema: &Value, value: &Value, depth: usize) -> Option<String> {
    if schema == &Value::Bool(false) {
        return Some(format!("{place} is not allowed"));
    }
    let schema = schema.as_object()?;
    let depth = depth.checked_sub(1)?;
    if let Some(wanted) = schema.get("type")
        && !types(wanted).any(|name| is(value, name))
    {
        return Some(format!("{place} is not of type {wanted}"));
    }
    if let Some(Value::Array(allowed)) = schema.get("enum")
        && !allowed.contains(value)
    {
        return Some(format!(
            "{place} is none of {}",
            Value::from(allowed.clone())
        ));
    }
    if let Some(wanted) = schema.get("const")
        && wanted != value
    {
        return Some(format!("{place} is not {wanted}"));
    }
    match value {
        Value::Object(map) => {
            let required = schema.get("required").and_then(Value::as_array);
            for key in required.into_iter().flatten().filter_map(Value::as_str) {
                if !map.contains_key(key) {
                    return Some(format!("{place} has no {key:?}"));
                }
            }
            let properties = schema.get("properties").and_then(Value::as_object);
            for (key, value) in map {
                match properties.and_then(|p| p.get(key)) {
                    Some(schema) => {
                        let found = at(&format!("{place}'s {key:?}"), schema, value, depth);
                        if found.is_some() {
                            return found;
                        }
                    }
                    None => {
                        let closed =
                            schema.get("additionalProperties") == Some(&Value::Bool(false));
                        if closed && !schema.contains_key("patternProperties") {
                            return Some(format!(
                                "{place} has {key:?}, which is not in the schema"
                            ));
                        }
                    }
                }
            }
            None
        }
        Value::Array(values) => {
            let items = schema.get("items")?;
            let each = |(n, value)| at(&format!("{place}'s item {n}"), items, value, depth);
            values.iter().enumerate().find_map(each)
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

fn types(wanted: &Value) -> impl Iterator<Item = &str> {
    let one = wanted.as_str();
    let many = wanted.as_array();
    one.into_iter()
        .chain(many.into_iter().flatten().filter_map(Value::as_str))
}

fn is(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|n| n.fract() == 0.0),
        // A type of a newer schema.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn examples_and_schemas() {
        let schema = json!({
            "type": "object",
            "required": ["module"],
            "additionalProperties": false,
            "properties": {
                "module": {"type": "string", "enum": ["ping", "setup"]},
                "forks": {"type": ["integer", "null"]},
                "hosts": {"items": {"type": "string"}},
                "odd": {"oneOf": [false], "type": "of-tomorrow"},
                "fixed": {"const": 1},
                "never": false,
            }
        });
        let good = [
            json!({"module": "ping"}),
            json!({"module": "setup", "forks": 5.0, "hosts": ["a"], "odd": 1, "fixed": 1}),
            json!({"module": "ping", "forks": null}),
        ];
        for value in good {
            assert_eq!(problem(&schema, &value), None, "{value}");
        }
        let bad = [
            (json!([]), "the example is not of type \"object\""),
            (json!({}), "the example has no \"module\""),
            (
                json!({"module": 1}),
                "the example's \"module\" is not of type \"string\"",
            ),
            (
                json!({"module": "x"}),
                "the example's \"module\" is none of [\"ping\",\"setup\"]",
            ),
            (
                json!({"module": "ping", "forks": 1.5}),
                "the example's \"forks\" is not of type [\"integer\",\"null\"]",
            ),
            (
                json!({"module": "ping", "hosts": ["a", 1]}),
                "the example's \"hosts\"'s item 1 is not of type \"string\"",
            ),
            (
                json!({"module": "ping", "fixed": 2}),
                "the example's \"fixed\" is not 1",
            ),
            (
                json!({"module": "ping", "never": 2}),
                "the example's \"never\" is not allowed",
            ),
            (
                json!({"module": "ping", "x": 2}),
                "the example has \"x\", which is not in the schema",
            ),
        ];
        for (value, text) in bad {
            assert_eq!(problem(&schema, &value).as_deref(), Some(text));
        }
    }
}
