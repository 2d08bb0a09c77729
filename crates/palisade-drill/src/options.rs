//! The options of a drill, and what is allowed.

use crate::{
    attacks::{self, Attack},
    bounds::MAX_CONNECTIONS,
    child::limit,
    error::{ConfigFault, DrillError},
    honest::OpenPaths,
    tls,
};
use http::{HeaderName, HeaderValue, header};

/// The attackers beyond the places of a server, so that not all of them find one.
pub(crate) fn more_than(places: usize) -> usize {
    places + places / 10 + 16
}

/// The largest number of places that attackers can fill and as many newcomers can ask for.
const MAX_PLACES: usize = (MAX_CONNECTIONS - 16) * 10 / 21;

/// The limits on open files of a child: a server needs a few for itself, and attackers fill the
/// rest.
const FILE_LIMITS: std::ops::RangeInclusive<u64> = 64..=MAX_PLACES as u64;

/// The limits on memory of a child in bytes, less than the 380 MiB that `held-open-uploads` sends.
const MEMORY_LIMITS: std::ops::RangeInclusive<u64> = 32 << 20..=320 << 20;

/// The headers that the drill writes itself, or that HTTP/2 does not allow.
const OWN_HEADERS: [HeaderName; 9] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::HOST,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::USER_AGENT,
];

/// The options of a drill, unchecked.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) places: Option<usize>,
    pub(crate) file_limit: Option<u64>,
    pub(crate) memory_limit: Option<u64>,
    /// The host that is asked for in TLS; `None` in clear text.
    pub(crate) tls: Option<String>,
    pub(crate) get: String,
    pub(crate) post: Option<String>,
    pub(crate) large: Option<String>,
    pub(crate) cpu_get: Option<String>,
    pub(crate) open: OpenPaths,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) only: Vec<String>,
    pub(crate) skip: Vec<String>,
    pub(crate) quick: bool,
    pub(crate) seed: u64,
    pub(crate) has_attackers: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            places: None,
            file_limit: None,
            memory_limit: None,
            tls: None,
            get: "/".to_owned(),
            post: None,
            large: None,
            cpu_get: None,
            open: OpenPaths::default(),
            headers: Vec::new(),
            only: Vec::new(),
            skip: Vec::new(),
            quick: false,
            seed: 1,
            has_attackers: true,
        }
    }
}

impl Options {
    /// Checks all options.
    ///
    /// # Errors
    ///
    /// If any is wrong: all of them.
    pub(crate) fn check(&self) -> Result<(), DrillError> {
        let mut faults = Vec::new();
        let mut check = |is_allowed: bool, field, value: &str, allowed: &str| {
            if !is_allowed {
                faults.push(ConfigFault {
                    field,
                    value: value.to_owned(),
                    allowed: allowed.to_owned(),
                });
            }
        };
        if let Some(places) = self.places {
            let is_allowed = (1..=MAX_PLACES).contains(&places);
            let allowed = format!("1 to {MAX_PLACES}");
            check(is_allowed, "places", &places.to_string(), &allowed);
        }
        if let Some(files) = self.file_limit {
            let is_allowed = FILE_LIMITS.contains(&files);
            let allowed = format!("{} to {}", FILE_LIMITS.start(), FILE_LIMITS.end());
            check(is_allowed, "file_limit", &files.to_string(), &allowed);
            let allowed = "nothing but on Linux: set `places`";
            check(
                limit::IS_POSSIBLE,
                "file_limit",
                &files.to_string(),
                allowed,
            );
        }
        if let Some(bytes) = self.memory_limit {
            let is_allowed = MEMORY_LIMITS.contains(&bytes);
            let allowed = format!("{} to {}", MEMORY_LIMITS.start(), MEMORY_LIMITS.end());
            check(is_allowed, "memory_limit", &bytes.to_string(), &allowed);
            let allowed = "nothing but on Linux";
            check(
                limit::IS_POSSIBLE,
                "memory_limit",
                &bytes.to_string(),
                allowed,
            );
        }
        if let Some(name) = &self.tls {
            let allowed = "the name of a host, or an IP address";
            check(tls::is_name(name), "tls", name, allowed);
        }
        let paths = [
            ("get", Some(&self.get)),
            ("post", self.post.as_ref()),
            ("large", self.large.as_ref()),
            ("cpu_get", self.cpu_get.as_ref()),
            ("events", self.open.events.as_ref()),
            ("websocket", self.open.websocket.as_ref()),
        ];
        for (field, path) in paths {
            let path = path.map_or("/", String::as_str);
            let allowed = "a path that begins with / and has visible ASCII characters alone";
            check(is_path(path), field, path, allowed);
        }
        for (name, value) in &self.headers {
            let parsed = HeaderName::from_bytes(name.as_bytes());
            let is_value = HeaderValue::from_str(value).is_ok();
            let is_name = parsed.is_ok_and(|name| !OWN_HEADERS.contains(&name));
            let allowed = "a name and a value of HTTP, and none that the drill writes itself";
            check(is_name && is_value, "header", name, allowed);
        }
        let known: Vec<_> = attacks::all().iter().map(|attack| attack.name).collect();
        let allowed = format!("one of {}", known.join(", "));
        for (field, names) in [("only", &self.only), ("skip", &self.skip)] {
            for name in names {
                check(known.contains(&name.as_str()), field, name, &allowed);
            }
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(DrillError::Config(faults))
        }
    }

    /// Returns the number of connections that the server admits, as far as is known. A file limit
    /// admits fewer than its number, because a server has files of its own.
    pub(crate) fn admitted(&self) -> Option<usize> {
        let files = || {
            self.file_limit
                .and_then(|files| usize::try_from(files).ok())
        };
        self.places.or_else(files)
    }

    /// Returns whether the attack was asked for.
    pub(crate) fn selects(&self, attack: &Attack) -> bool {
        let names = |list: &[String]| list.iter().any(|name| name == attack.name);
        (self.only.is_empty() || names(&self.only)) && !names(&self.skip)
    }
}

fn is_path(path: &str) -> bool {
    path.starts_with('/')
        && path
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'#')
        && path.parse::<http::uri::PathAndQuery>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_allowed() {
        assert!(Options::default().check().is_ok());
        assert!(more_than(MAX_PLACES) + MAX_PLACES <= MAX_CONNECTIONS);
    }

    #[test]
    fn every_wrong_option_is_named_with_its_value_and_what_is_allowed() {
        let options = Options {
            places: Some(0),
            get: "no path".to_owned(),
            post: Some("/a b\r\nx: y".to_owned()),
            headers: vec![
                ("host".to_owned(), "a".to_owned()),
                ("x".to_owned(), "a\nb".to_owned()),
            ],
            only: vec!["slowloris".to_owned()],
            ..Options::default()
        };
        let DrillError::Config(faults) = options.check().unwrap_err() else {
            panic!("another error");
        };
        let fields: Vec<_> = faults.iter().map(|fault| fault.field).collect();
        assert_eq!(
            fields,
            ["places", "get", "post", "header", "header", "only"]
        );
        assert_eq!((&*faults[0].value, &*faults[0].allowed), ("0", "1 to 1897"));
        assert!(faults[5].allowed.contains("dripped-head"));
    }

    #[test]
    fn attacks_are_selected_and_skipped_by_name() {
        let names = |only: &[&str], skip: &[&str]| {
            let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
            let options = Options {
                only: owned(only),
                skip: owned(skip),
                ..Options::default()
            };
            let all = attacks::all().into_iter();
            let selected = all.filter(|attack| options.selects(attack));
            selected.map(|attack| attack.name).collect::<Vec<_>>()
        };
        assert_eq!(names(&["silent", "churn"], &["churn"]), ["silent"]);
        assert_eq!(names(&[], &[]).len(), attacks::all().len());
    }
}
