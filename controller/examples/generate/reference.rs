//! The API reference, docs/reference/api.md, made from the CRD's schema. It adds nothing about a field: a text that is missing there
//! is missing in `kubectl explain` as well.

use std::fmt::Write as _;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};

/// The page.
pub(crate) fn page(crd: &CustomResourceDefinition) -> String {
    let names = &crd.spec.names;
    let mut page = format!(
        "# API reference\n\n<!-- Generated from controller/src/crd.rs by `cargo generate`. -->\n\n\
         `{}` in the group `{}`, {}; short name `{}`, category `{}`.\n",
        names.kind,
        crd.spec.group,
        crd.spec.scope.to_lowercase(),
        names.short_names.iter().flatten().cloned().collect::<Vec<_>>().join("`, `"),
        names.categories.iter().flatten().cloned().collect::<Vec<_>>().join("`, `"),
    );
    for version in &crd.spec.versions {
        let _ = writeln!(page, "\n## {}", version.name);
        let Some(schema) = version.schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref())
        else {
            continue;
        };
        let _ = writeln!(page, "\n{}", line(schema));
        let _ = writeln!(page, "\n| column | shows | in |\n| --- | --- | --- |");
        for column in version.additional_printer_columns.iter().flatten() {
            let list = if column.priority.unwrap_or(0) > 0 { "`-o wide`" } else { "every list" };
            let (name, path) = (column.name.to_uppercase(), &column.json_path);
            let _ = writeln!(page, "| {name} | `{path}` | {list} |");
        }
        fields(&mut page, "", schema);
    }
    page
}

/// A table of an object's fields, and then one for each of them that has fields of its own.
fn fields(page: &mut String, path: &str, schema: &JSONSchemaProps) {
    let Some(properties) = &schema.properties else { return };
    if !path.is_empty() {
        let _ = writeln!(
            page,
            "\n### {path}\n\n{}\n\n| field | type | meaning |\n| --- | --- | --- |",
            line(schema)
        );
        for (name, property) in properties {
            let required = schema.required.iter().flatten().any(|required| required == name);
            let type_ = format!("{}{}", type_of(property), if required { "" } else { ", optional" });
            let _ = writeln!(page, "| `{name}` | {type_} | {} |", line(property));
        }
    }
    for (name, property) in properties {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match item(property) {
            // Conditions are Kubernetes' own, described by its own reference.
            Some(_) if name == "conditions" => {}
            Some(item) => fields(page, &format!("{path}[]"), item),
            None => fields(page, &path, property),
        }
    }
}

fn item(schema: &JSONSchemaProps) -> Option<&JSONSchemaProps> {
    match schema.items.as_ref()? {
        JSONSchemaPropsOrArray::Schema(item) => Some(item),
        JSONSchemaPropsOrArray::Schemas(items) => items.first(),
    }
}

fn type_of(schema: &JSONSchemaProps) -> String {
    let type_ = schema.type_.as_deref().unwrap_or("any");
    match (item(schema), &schema.enum_, schema.format.as_deref()) {
        (Some(item), ..) => format!("list of {}s", type_of(item)),
        (None, Some(values), _) => {
            let values: Vec<_> = values.iter().filter_map(|value| value.0.as_str()).collect();
            format!("`{}`", values.join("`, `"))
        }
        (None, None, Some("date-time")) => "time".to_owned(),
        _ => type_.to_owned(),
    }
}

/// The description as a table needs it.
fn line(schema: &JSONSchemaProps) -> String {
    schema.description.as_deref().unwrap_or_default().replace('|', "\\|")
}
