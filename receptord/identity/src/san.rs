//! The node ids in a certificate's subject alternative names.
//!
//! Owns which names count: URIs `receptor:NODE-ID`, and otherNames with the OID of existing Receptor
//! certificates. Strict where a name claims to be a node id, since a doubt here is a doubt about who speaks;
//! it never looks at names of other kinds, and never at the subject.

use receptor_proto::NodeId;
use receptor_proto::id::NodeIdError;
use x509_parser::asn1_rs::{Any, Class, FromDer as _, Oid, Tag, oid};

/// The most node ids of one certificate. Existing certificates have one, seldom two.
pub const NODE_IDS_MAX: usize = 16;

/// What node ids in URIs begin with.
const SCHEME: &str = "receptor:";

/// Why the node ids of a certificate cannot be read without doubt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeIdsError {
    /// Alternative names that break the rules of their format.
    #[error("the subject alternative names are malformed")]
    Malformed,
    /// Two lists of alternative names.
    #[error("there are two lists of subject alternative names")]
    Repeated,
    /// A name with Receptor's OID that is no UTF-8 string.
    #[error("a Receptor name is not a UTF8String")]
    NotUtf8String,
    /// A name that is no node id.
    #[error(transparent)]
    Invalid(#[from] NodeIdError),
    /// More than [`NODE_IDS_MAX`].
    #[error("there are more than {NODE_IDS_MAX} node ids")]
    TooMany,
}

/// The node ids in the value of a subjectAltName extension, each once, in the order in which they stand.
pub(crate) fn node_ids(value: &[u8]) -> Result<Vec<NodeId>, NodeIdsError> {
    let names = whole(value, Class::Universal, Tag::Sequence)?;
    let mut rest = names;
    let mut found: Vec<NodeId> = Vec::new();
    while !rest.is_empty() {
        let (next, name) = Any::from_der(rest).map_err(|_| NodeIdsError::Malformed)?;
        rest = next;
        let Some(id) = node_id(&name)? else { continue };
        if found.contains(&id) {
            continue;
        }
        if found.len() == NODE_IDS_MAX {
            return Err(NodeIdsError::TooMany);
        }
        found.push(id);
    }
    Ok(found)
}

/// The node id that a general name is; nothing when it is a name of another kind.
fn node_id(name: &Any<'_>) -> Result<Option<NodeId>, NodeIdsError> {
    if name.class() != Class::ContextSpecific {
        return Err(NodeIdsError::Malformed);
    }
    match (name.tag().0, name.header.is_constructed()) {
        (0, true) => other_name(name.data),
        (6, false) => {
            // IA5String: whatever is not ASCII cannot begin with the scheme and be a node id.
            let Some(id) = name.data.strip_prefix(SCHEME.as_bytes()) else {
                return Ok(None);
            };
            let id = str::from_utf8(id).map_err(|_| NodeIdsError::Malformed)?;
            Ok(Some(NodeId::new(id)?))
        }
        (0 | 6, _) => Err(NodeIdsError::Malformed),
        _ => Ok(None),
    }
}

/// `OtherName ::= SEQUENCE { type-id OID, value [0] EXPLICIT ANY }`
fn other_name(content: &[u8]) -> Result<Option<NodeId>, NodeIdsError> {
    const RECEPTOR_NAME: Oid<'static> = oid!(1.3.6.1.4.1.2312.19.1);

    let (value, kind) = Oid::from_der(content).map_err(|_| NodeIdsError::Malformed)?;
    if kind != RECEPTOR_NAME {
        return Ok(None);
    }
    let value = whole(value, Class::ContextSpecific, Tag(0))?;
    let id =
        whole(value, Class::Universal, Tag::Utf8String).map_err(|_| NodeIdsError::NotUtf8String)?;
    let id = str::from_utf8(id).map_err(|_| NodeIdsError::NotUtf8String)?;
    Ok(Some(NodeId::new(id)?))
}

/// The content of the one value that there is.
fn whole(der: &[u8], class: Class, tag: Tag) -> Result<&[u8], NodeIdsError> {
    let (rest, value) = Any::from_der(der).map_err(|_| NodeIdsError::Malformed)?;
    let constructed = !(class == Class::Universal && tag == Tag::Utf8String);
    let right = rest.is_empty()
        && value.class() == class
        && value.tag() == tag
        && value.header.is_constructed() == constructed;
    right.then_some(value.data).ok_or(NodeIdsError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::der::{self, RECEPTOR_OID, general_names, other, uri};

    fn ids(names: &[Vec<u8>]) -> Result<Vec<String>, NodeIdsError> {
        let found = node_ids(&general_names(names))?;
        Ok(found.iter().map(ToString::to_string).collect())
    }

    fn receptor(name: &str) -> Vec<u8> {
        other(RECEPTOR_OID, &der::utf8(name.as_bytes()))
    }

    #[test]
    fn both_forms_and_several_ids_are_read() {
        assert_eq!(ids(&[uri("receptor:node-b")]).unwrap(), ["node-b"]);
        assert_eq!(ids(&[receptor("node-b")]).unwrap(), ["node-b"]);
        assert_eq!(
            ids(&[uri("receptor:node-b"), receptor("node-b")]).unwrap(),
            ["node-b"]
        );
        assert_eq!(
            ids(&[
                receptor("a"),
                uri("receptor:B"),
                receptor("b"),
                uri("receptor:x:y@z")
            ])
            .unwrap(),
            ["a", "B", "b", "x:y@z"]
        );
    }

    #[test]
    fn other_names_are_none_of_ours() {
        let dns = der::tagged(0x82, b"node-b");
        let ip = der::tagged(0x87, &[127, 0, 0, 1]);
        let directory = der::tagged(0xa4, &der::tagged(0x30, b""));
        let upn = other(
            &[0x2b, 6, 1, 4, 1, 0x82, 0x37, 20, 2, 3],
            &der::utf8(b"me@x"),
        );
        let strange = uri("https://receptor:node-b");
        let upper = uri("Receptor:node-b");
        assert_eq!(
            ids(&[dns, ip, directory, upn, strange, upper]).unwrap(),
            [""; 0]
        );
        assert_eq!(ids(&[]).unwrap(), [""; 0]);
    }

    #[test]
    fn what_claims_to_be_a_node_id_must_be_one() {
        let long = "x".repeat(129);
        let bad: &[(Vec<u8>, NodeIdsError)] = &[
            (uri("receptor:"), NodeIdError::Empty.into()),
            (receptor(""), NodeIdError::Empty.into()),
            (
                uri("receptor:a\0b"),
                NodeIdError::BadCharacter { found: '\0' }.into(),
            ),
            (
                receptor("a\0"),
                NodeIdError::BadCharacter { found: '\0' }.into(),
            ),
            (
                uri("receptor://a"),
                NodeIdError::BadCharacter { found: '/' }.into(),
            ),
            (
                uri("receptor:a%62"),
                NodeIdError::BadCharacter { found: '%' }.into(),
            ),
            (
                receptor("a,b"),
                NodeIdError::BadCharacter { found: ',' }.into(),
            ),
            (
                receptor("../a"),
                NodeIdError::BadCharacter { found: '/' }.into(),
            ),
            (receptor(".a"), NodeIdError::BadStart { found: '.' }.into()),
            (
                receptor("nöde"),
                NodeIdError::BadCharacter { found: 'ö' }.into(),
            ),
            (receptor(&long), NodeIdError::TooLong { length: 129 }.into()),
            (
                uri(&format!("receptor:{long}")),
                NodeIdError::TooLong { length: 129 }.into(),
            ),
            (
                other(RECEPTOR_OID, &der::tagged(0x16, b"ia5")),
                NodeIdsError::NotUtf8String,
            ),
            (
                other(RECEPTOR_OID, &der::tagged(0x1e, b"\0a")),
                NodeIdsError::NotUtf8String,
            ),
            (
                other(RECEPTOR_OID, &der::tagged(0x13, b"printable")),
                NodeIdsError::NotUtf8String,
            ),
            (
                other(RECEPTOR_OID, &der::utf8(b"\xff")),
                NodeIdsError::NotUtf8String,
            ),
            // Two strings in one name.
            (
                other(RECEPTOR_OID, &[der::utf8(b"a"), der::utf8(b"b")].concat()),
                NodeIdsError::NotUtf8String,
            ),
            // The string without the tag around it.
            (
                der::tagged(
                    0xa0,
                    &[der::tagged(0x06, RECEPTOR_OID), der::utf8(b"a")].concat(),
                ),
                NodeIdsError::Malformed,
            ),
            // A string in parts, which DER does not have.
            (
                other(RECEPTOR_OID, &der::tagged(0x2c, &der::utf8(b"a"))),
                NodeIdsError::NotUtf8String,
            ),
            (der::tagged(0xa6, b"receptor:a"), NodeIdsError::Malformed),
            (der::tagged(0x80, b"a"), NodeIdsError::Malformed),
            (der::utf8(b"a"), NodeIdsError::Malformed),
        ];
        for (name, error) in bad {
            assert_eq!(
                ids(std::slice::from_ref(name)),
                Err(error.clone()),
                "{name:x?}"
            );
            // A good one beside it does not help.
            assert_eq!(ids(&[receptor("a"), name.clone()]), Err(error.clone()));
        }
        assert_eq!(ids(&[receptor(&"x".repeat(128))]).unwrap().len(), 1);
    }

    #[test]
    fn only_so_many_ids_are_taken() {
        let many: Vec<_> = (0..NODE_IDS_MAX + 1)
            .map(|n| uri(&format!("receptor:n{n}")))
            .collect();
        assert_eq!(ids(&many[1..]).unwrap().len(), NODE_IDS_MAX);
        assert_eq!(ids(&many), Err(NodeIdsError::TooMany));
    }

    #[test]
    fn what_is_cut_or_has_a_tail_is_refused() {
        let good = general_names(&[uri("receptor:node-b"), receptor("node-c")]);
        for end in 0..good.len() {
            assert!(node_ids(&good[..end]).is_err(), "{end}");
        }
        assert!(node_ids(&[&good[..], &[0]].concat()).is_err());
        // A length of indefinite form is BER.
        assert!(node_ids(&[0x30, 0x80, 0, 0]).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_are_too_much(bytes in proptest::collection::vec(0u8.., 0..300)) {
            let _ = node_ids(&bytes);
        }

        #[test]
        fn no_damage_is_too_much(at in 0usize..44, to in 0u8..) {
            let mut names = general_names(&[uri("receptor:node-b"), receptor("node-c")]);
            if let Some(byte) = names.get_mut(at) {
                *byte = to;
            }
            let _ = node_ids(&names);
        }
    }
}
