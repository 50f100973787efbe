//! Who is believed, and why not.

use rcgen::ExtendedKeyUsagePurpose;
use receptor_identity::{
    CHAIN_MAX, Certificate, CertificateDer, Fingerprint, LoadError, Refusal, Role, Trust, Verified,
    read_certificates,
};

use crate::common::{Authority, DAY, NOW, Wish, at, node, wish};

fn member(trust: &Trust, chain: &[CertificateDer<'_>]) -> Result<Verified, Refusal> {
    trust.verify(chain, Role::Member, at(NOW))
}

#[test]
fn a_certificate_of_the_authority_is_believed_in_every_role() {
    let authority = Authority::new("ca");
    let chain = authority.chain(&Wish {
        ids: vec!["node-b", "node-c"],
        ..wish("")
    });
    for role in [Role::Client, Role::Server, Role::Member] {
        let verified = authority.trust().verify(&chain, role, at(NOW)).unwrap();
        assert_eq!(verified.node_ids, [node("node-b"), node("node-c")]);
        assert_eq!(verified.not_after, NOW + 30 * DAY);
        assert_eq!(verified.fingerprint, Fingerprint::of(&chain[0]));
        assert_eq!(verified.is_for(&node("node-c")), Ok(()));
        let other = verified.is_for(&node("node-d")).unwrap_err();
        assert_eq!(
            other.to_string(),
            "the certificate is not for node-d, but for node-b, node-c"
        );
    }
}

#[test]
fn nobody_else_is_believed() {
    let authority = Authority::new("ca");
    let trust = authority.trust();
    assert_eq!(member(&trust, &[]).unwrap_err(), Refusal::NoCertificate);
    // The same name with another key.
    let other = Authority::new("ca").chain(&wish("a"));
    assert_eq!(member(&trust, &other).unwrap_err(), Refusal::UnknownIssuer);
    let other = Authority::new("other").chain(&wish("a"));
    assert_eq!(member(&trust, &other).unwrap_err(), Refusal::UnknownIssuer);
    // The authority itself is no node.
    let own = read_certificates(authority.pem().as_bytes()).unwrap();
    assert!(matches!(
        member(&trust, &own).unwrap_err(),
        Refusal::Certificate(_)
    ));
    let nameless = authority.chain(&Wish {
        ids: vec![],
        ..wish("")
    });
    assert_eq!(member(&trust, &nameless).unwrap_err(), Refusal::NoNodeId);
    let long = vec![authority.chain(&wish("a"))[0].clone(); CHAIN_MAX + 1];
    assert_eq!(member(&trust, &long).unwrap_err(), Refusal::TooLarge);
    let large = [
        authority.chain(&wish("a"))[0].clone(),
        CertificateDer::from(vec![0; 40_000]),
    ];
    assert_eq!(member(&trust, &large).unwrap_err(), Refusal::TooLarge);
}

#[test]
fn a_certificate_is_believed_in_its_time_only() {
    let authority = Authority::new("ca");
    let chain = authority.chain(&wish("a"));
    let verify = |now| authority.trust().verify(&chain, Role::Client, at(now));
    assert!(verify(NOW - DAY).is_ok());
    assert!(verify(NOW + 30 * DAY).is_ok());
    let not_before = NOW - DAY;
    assert_eq!(
        verify(NOW - DAY - 1).unwrap_err(),
        Refusal::NotYetValid { not_before }
    );
    let error = verify(NOW + 30 * DAY + 1).unwrap_err();
    let not_after = NOW + 30 * DAY;
    assert_eq!(error, Refusal::Expired { not_after });
    assert_eq!(
        error.to_string(),
        "the certificate expired at 2027-02-14T08:00:00Z"
    );
}

#[test]
fn an_authority_that_is_over_has_no_say() {
    let authority = Authority::until("ca", NOW - 1);
    let chain = authority.chain(&wish("a"));
    let not_after = NOW - 1;
    assert_eq!(
        member(&authority.trust(), &chain).unwrap_err(),
        Refusal::Expired { not_after }
    );
    // It does not stand in the way of others.
    let both = [authority.pem(), Authority::new("new").pem()].concat();
    let trust = Trust::new(both.as_bytes()).unwrap();
    assert!(member(&trust, &chain).is_err());
    let next = Authority::until("ca", NOW + 5 * DAY);
    let both = [authority.pem(), next.pem()].concat();
    let trust = Trust::new(both.as_bytes()).unwrap();
    let verified = member(&trust, &next.chain(&wish("a"))).unwrap();
    assert_eq!(verified.not_after, NOW + 5 * DAY);
}

#[test]
fn a_chain_leads_over_others_and_ends_with_the_first_of_them() {
    let root = Authority::new("root");
    let between = root.between("between");
    let mut chain = between.chain(&wish("a"));
    assert_eq!(
        member(&root.trust(), &chain).unwrap_err(),
        Refusal::UnknownIssuer
    );
    chain.extend(read_certificates(between.pem().as_bytes()).unwrap());
    let verified = member(&root.trust(), &chain).unwrap();
    assert_eq!(verified.not_after, NOW + 10 * DAY);
}

#[test]
fn what_a_certificate_is_for_holds() {
    let authority = Authority::new("ca");
    let only = |uses: Vec<ExtendedKeyUsagePurpose>, role| {
        let chain = authority.chain(&Wish { uses, ..wish("a") });
        authority.trust().verify(&chain, role, at(NOW)).map(|_| ())
    };
    let server = || vec![ExtendedKeyUsagePurpose::ServerAuth];
    let client = || vec![ExtendedKeyUsagePurpose::ClientAuth];
    assert_eq!(only(server(), Role::Server), Ok(()));
    assert_eq!(only(server(), Role::Member), Ok(()));
    assert_eq!(only(server(), Role::Client), Err(Refusal::WrongUse));
    assert_eq!(only(client(), Role::Client), Ok(()));
    assert_eq!(only(client(), Role::Member), Ok(()));
    assert_eq!(only(client(), Role::Server), Err(Refusal::WrongUse));
    let mail = || vec![ExtendedKeyUsagePurpose::EmailProtection];
    assert_eq!(only(mail(), Role::Member), Err(Refusal::WrongUse));
    assert_eq!(only(vec![], Role::Client), Ok(()));
}

#[test]
fn a_revoked_certificate_is_refused() {
    let authority = Authority::new("ca");
    let chain = authority.chain(&wish("a"));
    let with = |list: &str| {
        authority
            .trust()
            .with_revocation_lists(list.as_bytes())
            .unwrap()
    };
    let refusing = with(&authority.revoke(&[1, 7, 9]));
    assert_eq!(member(&refusing, &chain).unwrap_err(), Refusal::Revoked);
    assert_eq!(refusing.lists_due(), Some(NOW + DAY));
    let empty = with(&authority.revoke(&[]));
    assert!(member(&empty, &chain).is_ok());
    // Past its next update it still counts.
    let later = refusing.verify(&chain, Role::Client, at(NOW + 2 * DAY));
    assert_eq!(later.unwrap_err(), Refusal::Revoked);
    let later = empty.verify(&chain, Role::Client, at(NOW + 2 * DAY));
    assert!(later.is_ok());
}

#[test]
fn lists_must_be_there_for_every_issuer_or_for_none() {
    let root = Authority::new("root");
    let between = root.between("between");
    let mut chain = between.chain(&wish("a"));
    chain.extend(read_certificates(between.pem().as_bytes()).unwrap());
    let with = |lists: &[String]| {
        let trust = root.trust();
        trust
            .with_revocation_lists(lists.concat().as_bytes())
            .unwrap()
    };
    let missing = with(&[root.revoke(&[])]);
    assert_eq!(
        member(&missing, &chain).unwrap_err(),
        Refusal::NoRevocationList
    );
    let both = with(&[root.revoke(&[]), between.revoke(&[])]);
    assert!(member(&both, &chain).is_ok());
    // A list of the right name, signed by somebody else.
    let forged = with(&[root.revoke(&[]), Authority::new("between").revoke(&[])]);
    assert!(member(&forged, &chain).is_err());
}

#[test]
fn pins_narrow_what_is_believed() {
    let authority = Authority::new("ca");
    let (a, b) = (authority.chain(&wish("a")), authority.chain(&wish("b")));
    let pin: Fingerprint = Fingerprint::of(&a[0]).to_string().parse().unwrap();
    let trust = authority.trust().with_pins(&[pin]);
    assert!(member(&trust, &a).is_ok());
    assert_eq!(member(&trust, &b).unwrap_err(), Refusal::NotPinned);
    // A pin is no trust.
    let other = Authority::new("other").trust().with_pins(&[pin]);
    assert_eq!(member(&other, &a).unwrap_err(), Refusal::UnknownIssuer);
}

#[test]
fn damaged_files_are_refused_with_the_reason() {
    let authority = Authority::new("ca");
    let empty = Trust::new(b"").unwrap_err();
    assert_eq!(empty.to_string(), "there is no certificate in it");
    let key = authority.issue(&wish("a")).1;
    let no_certificate = Trust::new(key.as_bytes()).unwrap_err();
    assert_eq!(
        no_certificate,
        LoadError::Nothing {
            what: "certificate"
        }
    );
    let mut two = [authority.pem(), authority.pem()].concat();
    let at = two.rfind("-----BEGIN").unwrap() + 40;
    two.replace_range(at..at + 8, "AAAAAAAA");
    let bad = Trust::new(two.as_bytes()).unwrap_err();
    assert!(
        bad.to_string()
            .starts_with("certificate 2 in it cannot be used: "),
        "{bad}"
    );
    let list = authority.trust().with_revocation_lists(key.as_bytes());
    assert_eq!(
        list.unwrap_err().to_string(),
        "there is no revocation list in it"
    );
}

proptest::proptest! {
    #[test]
    fn no_damage_to_a_certificate_is_too_much(
        at_byte in 0usize..700,
        to in 0u8..,
        cut in proptest::option::of(0usize..700),
    ) {
        thread_local! {
            static MADE: (Vec<u8>, Trust) = {
                let authority = Authority::new("ca");
                (authority.chain(&wish("node-b"))[0].to_vec(), authority.trust())
            };
        }
        MADE.with(|(der, trust)| {
            let mut damaged = der.clone();
            if let Some(byte) = damaged.get_mut(at_byte) {
                *byte = to;
            }
            damaged.truncate(cut.unwrap_or(damaged.len()));
            let _ = Certificate::from_der(&damaged);
            let believed = member(trust, &[CertificateDer::from(damaged.clone())]).is_ok();
            assert!(!believed || damaged == *der);
        });
    }

    #[test]
    fn no_bytes_are_too_much(bytes in proptest::collection::vec(0u8.., 0..600)) {
        let _ = Certificate::from_der(&bytes);
        let _ = read_certificates(&bytes);
        let _ = Trust::new(&bytes);
        let _ = Authority::new("ca").trust().with_revocation_lists(&bytes);
        let pem = [b"-----BEGIN CERTIFICATE-----\n", &bytes[..], b"\n-----END CERTIFICATE-----\n"];
        let _ = read_certificates(&pem.concat());
        let _ = String::from_utf8_lossy(&bytes).parse::<Fingerprint>();
    }
}
