//! Keys and certificates as files hold them.

use receptor_identity::{Credentials, Fingerprint, LoadError, Purpose, Refusal, SigningKey};

use crate::common::{Authority, Wish, node, wish};

#[test]
fn every_kind_of_key_signs_and_is_checked_by_its_certificate() {
    let authority = Authority::new("ca");
    for (algorithm, name) in [
        (&rcgen::PKCS_ED25519, "Ed25519"),
        (&rcgen::PKCS_ECDSA_P256_SHA256, "ECDSA P-256"),
        (&rcgen::PKCS_ECDSA_P384_SHA384, "ECDSA P-384"),
    ] {
        let chain_and_key = authority.issue(&Wish {
            algorithm,
            ..wish("a")
        });
        let own =
            Credentials::from_pem(chain_and_key.0.as_bytes(), chain_and_key.1.as_bytes()).unwrap();
        assert_eq!(own.node_ids(), [node("a")]);
        assert_eq!(own.certificate().key, name);
        let verified = authority
            .trust()
            .verify(
                own.chain(),
                receptor_identity::Role::Member,
                crate::common::at(crate::common::NOW),
            )
            .unwrap();
        let signature = own.key().sign(Purpose::Lsa, b"text").unwrap();
        let verifies = |purpose, text: &[u8], signature: &[u8]| {
            verified.key.verifies(purpose, text, signature)
        };
        assert!(verifies(Purpose::Lsa, b"text", &signature), "{name}");
        assert!(!verifies(Purpose::Statement, b"text", &signature));
        assert!(!verifies(Purpose::Lsa, b"text ", &signature));
        assert!(!verifies(Purpose::Lsa, b"text", &[]));
        for at in 0..signature.len() {
            let mut changed = signature.clone();
            changed[at] ^= 1;
            assert!(!verifies(Purpose::Lsa, b"text", &changed), "{name} {at}");
        }
        let long = [&signature[..], &[0; 2000]].concat();
        assert!(!verifies(Purpose::Lsa, b"text", &long));
    }
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let authority = Authority::new("ca");
    let (certificate, key) = authority.issue(&wish("a"));
    let other = authority.issue(&wish("a")).1;
    let read = |certificate: &str, key: &str| {
        Credentials::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap_err()
    };
    assert_eq!(read(&certificate, &other), LoadError::KeyMismatch);
    assert_eq!(
        read(&key, &key),
        LoadError::Nothing {
            what: "certificate"
        }
    );
    assert_eq!(
        read(&certificate, &certificate),
        LoadError::Nothing {
            what: "private key"
        }
    );
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    assert_eq!(read(&certificate, encrypted), LoadError::EncryptedKey);
    let nameless = authority.issue(&Wish {
        ids: vec![],
        ..wish("")
    });
    assert_eq!(
        read(&nameless.0, &nameless.1),
        LoadError::Certificate(Refusal::NoNodeId)
    );
}

#[test]
fn private_keys_are_not_printed_nor_told_in_errors() {
    let (certificate, key) = Authority::new("ca").issue(&wish("a"));
    let secret: Vec<&str> = key.lines().filter(|line| !line.starts_with('-')).collect();
    let own = Credentials::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
    let damaged = key.replacen(&secret[0][..8], "####", 1);
    let error = SigningKey::from_pem(damaged.as_bytes()).unwrap_err();
    let shown = format!("{own:?} {:?} {error:?} {error}", own.key());
    for line in secret {
        assert!(!shown.contains(&line[..8]), "{shown}");
    }
    assert!(shown.contains("SigningKey(ECDSA P-256)"), "{shown}");
}

#[test]
fn fingerprints_are_read_in_the_usual_ways() {
    let plain = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    let colons: Vec<String> = plain
        .as_bytes()
        .chunks(2)
        .map(|pair| String::from_utf8(pair.to_vec()).unwrap().to_uppercase())
        .collect();
    let expected: Fingerprint = plain.parse().unwrap();
    assert_eq!(expected.to_string(), plain);
    assert_eq!(colons.join(":").parse(), Ok(expected));
    assert_eq!(format!("sha256:{plain}").parse(), Ok(expected));
    for bad in [
        "",
        "00",
        &plain[1..],
        &format!("{plain}0"),
        &plain.replace('a', "g"),
        "é",
    ] {
        assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_are_too_much(bytes in proptest::collection::vec(0u8.., 0..300)) {
        let _ = SigningKey::from_pem(&bytes);
        for kind in ["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"] {
            let begin = format!("-----BEGIN {kind}-----\n");
            let end = format!("\n-----END {kind}-----\n");
            let _ = SigningKey::from_pem(&[begin.as_bytes(), &bytes, end.as_bytes()].concat());
        }
    }
}
