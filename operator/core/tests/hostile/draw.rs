//! Draws a manifest from a seed.

use fastrand::Rng;
use serde_json::{Map, Value, json};

/// Texts with a meaning somewhere, and texts that mean harm.
const TEXTS: &[&str] = &[
    "",
    " ",
    "a",
    "worker",
    "a.b/c",
    "/",
    "/data/a.tar",
    "/data/{000..003}.tar",
    "/{0..99999999999999999999}.tar",
    "/{{{{{{{{a",
    "/{a,{b,{c,d}}}}",
    "{}",
    "..",
    "/../..",
    "/etc/lcl",
    "/dev/shm",
    "/tmp",
    "file:///runs/a",
    "s3://b//a",
    "s3://b/a.tar",
    "http://",
    "512m",
    "1Gi",
    "-1",
    "1e999",
    "9999999999999999999999999",
    "0.0000000000000000000001",
    "nan",
    "1Ei",
    "NaN",
    "true",
    "null",
    "RANK",
    "LCL_JOB",
    "LCL_COORDINATOR",
    "lcl.dev/role",
    "lcl-config",
    "lcl-tmp",
    "Unconfined",
    "Localhost",
    "Always",
    "Never",
    "https://kubernetes.default.svc",
    "sts.amazonaws.com",
    "width > 1",
    "size(a) > 2 && b",
    "((((((((((",
    "a.all(b, b.all(c, c > 1))",
    "'",
    "\"",
    "\\",
    "$(LCL_JOB)",
    "%s%n",
    "\0",
    "\u{202e}abc",
    "\u{feff}",
    "ｗｏｒｋｅｒ",
    "😀",
    "é",
    "\r\n",
    "{{ .Values }}",
    "spc_t",
    "nvidia.com/gpu",
    "cpu",
    "memory",
    "hugepages-2Mi",
    "requests.a/b",
];
/// Numbers at the edges of types and of rules.
const NUMBERS: &[i64] = &[
    0,
    1,
    2,
    3,
    7,
    8,
    16,
    64,
    100,
    512,
    600,
    1024,
    65_535,
    65_536,
    -1,
    -2,
    2_147_483_647,
    2_147_483_648,
    -2_147_483_648,
    i64::MAX,
    i64::MIN,
    4_294_967_296,
];
/// Nested so deep: deeper than the definition, and as deep as a JSON reader goes.
const DEEP: usize = 120;

/// One manifest's chances.
pub(crate) struct Draw {
    rng: Rng,
    /// How often, of a hundred, a value is one that nobody expects.
    wild: usize,
}

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        // Some are all but right, so that they get far.
        let wild = [0, 0, 1, 5, 25][rng.usize(..5)];
        Self { rng, wild }
    }

    fn percent(&mut self, chance: usize) -> bool {
        self.rng.usize(..100) < chance
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.usize(..of.len())]
    }

    /// The whole object drawn, or a valid one with parts of it drawn.
    pub(crate) fn manifest(&mut self, schema: &Value, valid: &Value) -> Value {
        if self.percent(2) {
            return self.anything();
        }
        let mut manifest = valid.clone();
        if self.percent(10) {
            manifest["spec"] = self.value(&schema["properties"]["spec"], 0);
            return manifest;
        }
        let spec = &schema["properties"]["spec"]["properties"];
        for _ in 0..self.rng.usize(..4) {
            let names: Vec<&String> = spec.as_object().unwrap().keys().collect();
            let name = self.pick(&names);
            // Nobody watches what becomes of a whole model or data set that is drawn: it is never valid.
            manifest["spec"][name] = self.value(&spec[name], 1);
        }
        if self.percent(60) {
            self.add_template(&mut manifest, &spec["workers"]["properties"]["template"]);
        }
        if self.percent(self.wild) {
            let name = self.pick(&["metadata", "spec", "status", "kind", "apiVersion", "more"]);
            manifest[name] = self.anything();
        }
        manifest
    }

    /// A template with a container `worker`, of which a field or two are drawn: few enough that the pod is one.
    fn add_template(&mut self, manifest: &mut Value, schema: &Value) {
        let pod = &schema["properties"]["spec"]["properties"];
        let mut spec = json!({ "containers": [{ "name": "worker" }] });
        for _ in 0..=self.rng.usize(..3) {
            let names: Vec<&String> = pod.as_object().unwrap().keys().collect();
            let common = ["securityContext", "volumes", "hostNetwork", "automountServiceAccountToken", "initContainers"];
            let name = if self.percent(50) { self.pick(&common) } else { self.pick(&names) };
            if name != "containers" || self.percent(20) {
                spec[name] = self.value(&pod[name], 3);
            }
        }
        if let Some(containers) = spec["containers"].as_array_mut().filter(|containers| !containers.is_empty()) {
            let container = &pod["containers"]["items"]["properties"];
            let name = self.pick(&["securityContext", "ports", "env", "volumeMounts", "command", "lifecycle"]);
            if containers[0].is_object() && self.percent(60) {
                containers[0][name] = self.value(&container[name], 3);
            }
        }
        // Too rare to be drawn by chance: a token alone, and one field of a securityContext alone.
        if self.percent(10) {
            let source = &pod["volumes"]["items"]["properties"]["projected"]["properties"]["sources"]["items"]["properties"];
            let token = self.value(&source["serviceAccountToken"], 3);
            spec["volumes"] = json!([{ "name": "token", "projected": { "sources": [{ "serviceAccountToken": token }] } }]);
        }
        if self.percent(30) {
            let fields = &pod["containers"]["items"]["properties"]["securityContext"]["properties"];
            let names: Vec<&String> = fields.as_object().unwrap().keys().collect();
            let name = self.pick(&names);
            let security = json!({ name: self.value(&fields[name], 3) });
            spec["containers"] = json!([{ "name": "worker", "securityContext": security }]);
        }
        if !manifest["spec"].is_object() {
            return;
        }
        if !manifest["spec"]["workers"].is_object() {
            manifest["spec"]["workers"] = json!({ "replicas": 1 });
        }
        manifest["spec"]["workers"]["template"] = json!({ "spec": spec });
        if self.percent(20) {
            manifest["spec"]["workers"]["template"]["metadata"] = self.value(&schema["properties"]["metadata"], 3);
        }
    }

    /// Something that fits the schema's structure, or does not.
    fn value(&mut self, schema: &Value, depth: usize) -> Value {
        if self.percent(self.wild) {
            return self.anything();
        }
        if let Some(values) = schema["enum"].as_array() {
            return values[self.rng.usize(..values.len())].clone();
        }
        match schema["type"].as_str() {
            Some("object") => self.object(schema, depth),
            Some("array") => {
                let count = self.rng.usize(..3).max(schema["minItems"].as_u64().unwrap_or(0) as usize);
                (0..count).map(|_| self.value(&schema["items"], depth + 1)).collect()
            }
            Some("boolean") => json!(self.rng.bool()),
            Some("integer") => self.number(schema),
            Some("number") => json!(self.pick(&[0.0, 0.5, 1.0, -1.0, 1e-300, 1e300, f64::MAX, f64::MIN_POSITIVE, -0.0])),
            Some("string") => json!(self.pick(TEXTS)),
            _ if self.rng.bool() => json!(self.pick(NUMBERS)),
            _ => json!(self.pick(TEXTS)),
        }
    }

    /// Mostly within the bounds.
    fn number(&mut self, schema: &Value) -> Value {
        let (least, most) = (schema["minimum"].as_f64().unwrap_or(f64::MIN), schema["maximum"].as_f64().unwrap_or(f64::MAX));
        let fits: Vec<i64> = NUMBERS.iter().copied().filter(|number| (least..=most).contains(&(*number as f64))).collect();
        if fits.is_empty() || self.percent(self.wild) { json!(self.pick(NUMBERS)) } else { json!(self.pick(&fits)) }
    }

    fn object(&mut self, schema: &Value, depth: usize) -> Value {
        let mut fields = Map::new();
        let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let properties: Vec<(&String, &Value)> = schema["properties"].as_object().into_iter().flatten().collect();
        // Two of the optional ones, so that big objects do not grow without end.
        let chance = (200 / properties.len().max(4)).max(1);
        for (name, field) in properties {
            let is_required = required.contains(&name.as_str());
            if if is_required { !self.percent(self.wild) } else { depth < 12 && self.percent(chance) } {
                fields.insert(name.clone(), self.value(field, depth + 1));
            }
        }
        if schema["additionalProperties"].is_object() {
            for _ in 0..self.rng.usize(..3) {
                let key = self.pick(TEXTS).to_owned();
                fields.insert(key, self.value(&schema["additionalProperties"], depth + 1));
            }
        }
        if self.percent(self.wild) {
            let key = self.pick(TEXTS).to_owned();
            fields.insert(key, self.anything());
        }
        Value::Object(fields)
    }

    fn anything(&mut self) -> Value {
        match self.rng.usize(..10) {
            0 => Value::Null,
            1 => json!(self.rng.bool()),
            2 => json!(self.pick(NUMBERS)),
            3 => json!(self.pick(&[u64::MAX, 1 << 63, (1 << 63) - 1])),
            4 => json!(self.pick(&[1e308, -1e308, 1e-320, -0.0, 0.1, 1.5e19])),
            5 => json!(self.pick(TEXTS)),
            6 => json!(self.pick(TEXTS).repeat(self.pick(&[2, 100, 5000]))),
            7 => json!([self.pick(TEXTS), self.pick(NUMBERS), null]),
            8 => json!({ self.pick(TEXTS): self.pick(TEXTS), self.pick(TEXTS): {} }),
            _ => {
                let is_list = self.rng.bool();
                (0..DEEP).fold(Value::Null, |inner, _| if is_list { json!([inner]) } else { json!({ "a": inner }) })
            }
        }
    }
}
