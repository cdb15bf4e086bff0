//! Writes the definition from the Rust types: `cargo run -p lcl-crds --example generate_crds`. Once as a file for `kubectl apply`
//! (`crds/generated/lcltrainingjobs.yaml`), once as the template of the chart `charts/lcl-crds`; and the page that describes it
//! (`docs/api.md`).

#[path = "api/page.rs"]
mod page;

use std::{error::Error, fs, path::PathBuf};

/// Where the file lies.
pub(crate) fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("generated/lcltrainingjobs.yaml")
}

/// What it has to hold.
pub(crate) fn render() -> Result<String, Box<dyn Error>> {
    let definition = serde_json::to_value(lcl_crds::custom_resource_definition())?;
    let yaml = serde_saphyr::to_string(&definition)?;
    Ok(format!("# Generated from crds/src by `cargo run -p lcl-crds --example generate_crds`. Do not edit.\n{yaml}"))
}

/// Where the chart's template lies.
pub(crate) fn template_path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../charts/lcl-crds/templates/lcltrainingjobs.yaml")
}

/// The definition as a template: left out, and kept when the release goes, as the chart's values say.
pub(crate) fn render_template() -> Result<String, Box<dyn Error>> {
    const METADATA: &str = "metadata:\n  name: lcltrainingjobs.lcl.dev\n";
    const TEMPLATED: &str = "metadata:
  name: lcltrainingjobs.lcl.dev
  labels:
    app.kubernetes.io/name: lcl-crds
    app.kubernetes.io/part-of: lcl
    app.kubernetes.io/instance: {{ .Release.Name }}
    app.kubernetes.io/managed-by: {{ .Release.Service }}
  {{- if .Values.crds.keep }}
  annotations:
    helm.sh/resource-policy: keep
  {{- end }}
";
    let definition = render()?;
    // A description may hold what a template would take for its own.
    let (head, tail) = definition.split_once(METADATA).ok_or("the definition does not begin with its name")?;
    let escape = |text: &str| text.replace("{{", "{{ \"{{\" }}");
    Ok(format!("{{{{- if .Values.crds.enabled }}}}\n{}{TEMPLATED}{}{{{{- end }}}}\n", escape(head), escape(tail)))
}

/// Where the page lies.
pub(crate) fn page_path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/api.md")
}

/// What the page has to hold.
pub(crate) fn render_page() -> Result<String, Box<dyn Error>> {
    page::render()
}

fn main() -> Result<(), Box<dyn Error>> {
    for (path, content) in [(path(), render()?), (template_path(), render_template()?), (page_path(), render_page()?)] {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, content)?;
        println!("wrote {}", path.display());
    }
    Ok(())
}
