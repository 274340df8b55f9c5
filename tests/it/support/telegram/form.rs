//! The parameters of a request: a JSON object, or a form with files, in which every other value is text.

use serde_json::{Map, Value};

#[derive(Debug, Default)]
pub struct Input {
    values: Map<String, Value>,
    /// Name of the parameter, name of the file, content.
    files: Vec<(String, String, Vec<u8>)>,
}

impl Input {
    pub fn read(kind: &str, body: &[u8]) -> Result<Self, &'static str> {
        if body.is_empty() {
            return Ok(Self::default());
        }
        if kind.starts_with("application/json") {
            return match serde_json::from_slice(body) {
                Ok(Value::Object(values)) => Ok(Self { values, files: Vec::new() }),
                _ => Err("can't parse JSON object"),
            };
        }
        let boundary = kind.strip_prefix("multipart/form-data; boundary=").ok_or("unsupported content type")?;
        Self::form(boundary.trim_matches('"'), body).ok_or("can't parse multipart form")
    }

    fn form(boundary: &str, body: &[u8]) -> Option<Self> {
        let mut input = Self::default();
        let (mut rest, end) = (body, format!("\r\n--{boundary}"));
        rest = rest.strip_prefix(end.trim_start().as_bytes())?;
        while !rest.starts_with(b"--") {
            let head = find(rest, b"\r\n\r\n")?;
            let (headers, content) = (std::str::from_utf8(&rest[..head]).ok()?, &rest[head + 4..]);
            let length = find(content, end.as_bytes())?;
            let name = quoted(headers, "name")?;
            match quoted(headers, "filename") {
                Some(file) => input.files.push((name, file, content[..length].to_vec())),
                None => {
                    let text = std::str::from_utf8(&content[..length]).ok()?;
                    input.values.insert(name, Value::String(text.to_owned()));
                }
            }
            rest = &content[length + end.len()..];
        }
        Some(input)
    }

    pub fn get(&self, name: &str) -> Option<&Value> {
        self.values.get(name)
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Value::as_str)
    }

    /// A number; the Bot API takes it as text too.
    pub fn number(&self, name: &str) -> Option<i64> {
        match self.get(name)? {
            Value::String(text) => text.parse().ok(),
            value => value.as_i64(),
        }
    }

    pub fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some(Value::Bool(true))) || self.text(name) == Some("true")
    }

    /// An object; a form carries it as JSON in text.
    pub fn object(&self, name: &str) -> Option<Value> {
        match self.get(name)? {
            Value::String(text) => serde_json::from_str(text).ok(),
            value => Some(value.clone()),
        }
    }

    /// A file's name and content: the part of that name, or the one that it says is attached.
    pub fn file(&self, name: &str) -> Option<(&str, &[u8])> {
        let part = self.text(name).and_then(|text| text.strip_prefix("attach://")).unwrap_or(name);
        let (_, file, content) = self.files.iter().find(|(found, ..)| found == part)?;
        Some((file, content))
    }
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

/// `key="value"` of a part's headers.
fn quoted(headers: &str, key: &str) -> Option<String> {
    let mut pairs = headers.split([';', '\r', '\n']).map(str::trim);
    pairs.find_map(|pair| Some(pair.strip_prefix(key)?.strip_prefix("=\"")?.strip_suffix('"')?.to_owned()))
}
