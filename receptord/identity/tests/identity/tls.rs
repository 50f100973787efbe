//! Handshakes between two ends in memory.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use rcgen::ExtendedKeyUsagePurpose;
use receptor_identity::tls::{Configs, peer_chain, peer_ids, refusal};
use receptor_identity::{Refusal, Role, Trust, UnixTime};
use rustls::client::ClientConfig;
use rustls::time_provider::TimeProvider;
use rustls::{
    AlertDescription, CertificateError, ClientConnection, Connection, Error, ServerConnection,
};
use rustls_pki_types::ServerName;

use crate::common::{Authority, DAY, NOW, Wish, at, node, wish};

#[derive(Debug)]
struct Clock(u64);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(at(self.0))
    }
}

fn end(authority: &Authority, wish: &Wish, trust: Trust, now: u64) -> Configs {
    Configs::new(&authority.credentials(wish), trust, Arc::new(Clock(now))).unwrap()
}

/// Passes what one end writes to the other until both are silent, or one of them has had enough.
fn pump(client: &mut Connection, server: &mut Connection) -> Result<(), Error> {
    let mut result = Ok(());
    loop {
        let mut silent = true;
        for forth in [true, false] {
            let (from, to) = if forth {
                (&mut *client, &mut *server)
            } else {
                (&mut *server, &mut *client)
            };
            let mut wire = Vec::new();
            while from.wants_write() {
                from.write_tls(&mut wire).unwrap();
            }
            let mut wire = &wire[..];
            while !wire.is_empty() {
                silent = false;
                to.read_tls(&mut wire).unwrap();
                if let Err(error) = to.process_new_packets() {
                    if result.is_ok() {
                        result = Err(error);
                    }
                    break;
                }
            }
        }
        if silent {
            return result;
        }
    }
}

fn ends(client: Arc<ClientConfig>, server: &Configs) -> (Connection, Connection) {
    let name = ServerName::try_from("any.example").unwrap();
    let client = ClientConnection::new(client, name).unwrap();
    let server = ServerConnection::new(Arc::clone(&server.server)).unwrap();
    (client.into(), server.into())
}

fn shake(client: &Configs, server: &Configs) -> Result<(Connection, Connection), Error> {
    let (mut client, mut server) = ends(Arc::clone(&client.client), server);
    pump(&mut client, &mut server)?;
    Ok((client, server))
}

fn refused(result: Result<(Connection, Connection), Error>) -> Error {
    match result {
        Ok(_) => panic!("the handshake went well"),
        Err(error) => error,
    }
}

#[test]
fn two_of_one_authority_talk_and_know_each_other() {
    let authority = Authority::new("ca");
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
    ] {
        let a = Wish {
            algorithm,
            ids: vec!["a", "a2"],
            ..wish("")
        };
        let a = end(&authority, &a, authority.trust(), NOW);
        let b = end(&authority, &wish("b"), authority.trust(), NOW);
        let (mut client, mut server) = ends(Arc::clone(&a.client), &b);
        assert_eq!(peer_ids(&server), Err(Refusal::NoCertificate));
        pump(&mut client, &mut server).unwrap();
        assert_eq!(peer_ids(&client), Ok(vec![node("b")]));
        assert_eq!(peer_ids(&server), Ok(vec![node("a"), node("a2")]));
        assert_eq!(
            client.protocol_version(),
            Some(rustls::ProtocolVersion::TLSv1_3)
        );
        client.writer().write_all(b"hello").unwrap();
        pump(&mut client, &mut server).unwrap();
        let mut text = [0; 5];
        server.reader().read_exact(&mut text).unwrap();
        assert_eq!(&text, b"hello");
        // What a periodic check does.
        let verify = |now| {
            authority
                .trust()
                .verify(peer_chain(&server), Role::Client, at(now))
        };
        assert!(verify(NOW).is_ok());
        assert!(verify(NOW + 31 * DAY).is_err());
    }
}

#[test]
fn another_authority_is_refused_by_either_end() {
    let (ours, theirs) = (Authority::new("ca"), Authority::new("ca"));
    let good = end(&ours, &wish("a"), ours.trust(), NOW);
    // Believes everybody of both.
    let both = Trust::new([ours.pem(), theirs.pem()].concat().as_bytes()).unwrap();
    let stranger = end(&theirs, &wish("b"), both, NOW);
    let unknown = Error::InvalidCertificate(CertificateError::UnknownIssuer);
    assert_eq!(refused(shake(&good, &stranger)), unknown);
    assert_eq!(refused(shake(&stranger, &good)), unknown);
}

#[test]
fn a_revoked_peer_is_refused_by_either_end() {
    let authority = Authority::new("ca");
    let list = authority.revoke(&[9]);
    let knowing = authority.trust();
    let knowing = knowing.with_revocation_lists(list.as_bytes()).unwrap();
    let good = end(&authority, &wish("a"), knowing, NOW);
    let revoked = Wish {
        serial: 9,
        ..wish("b")
    };
    let revoked = end(&authority, &revoked, authority.trust(), NOW);
    let expected = Error::InvalidCertificate(CertificateError::Revoked);
    assert_eq!(refused(shake(&good, &revoked)), expected);
    assert_eq!(refused(shake(&revoked, &good)), expected);
}

#[test]
fn an_expired_peer_is_refused_by_either_end() {
    let authority = Authority::new("ca");
    let good = end(&authority, &wish("a"), authority.trust(), NOW);
    let over = Wish {
        not_after: NOW - 1,
        ..wish("b")
    };
    let over = end(&authority, &over, authority.trust(), NOW);
    let not_after = NOW - 1;
    for error in [refused(shake(&good, &over)), refused(shake(&over, &good))] {
        assert_eq!(refusal(&error), Some(Refusal::Expired { not_after }));
    }
}

#[test]
fn a_peer_with_another_use_is_refused() {
    let authority = Authority::new("ca");
    let good = end(&authority, &wish("a"), authority.trust(), NOW);
    let only = |uses| {
        let wish = Wish {
            uses: vec![uses],
            ..wish("b")
        };
        end(&authority, &wish, authority.trust(), NOW)
    };
    let expected = Error::InvalidCertificate(CertificateError::InvalidPurpose);
    let client = only(ExtendedKeyUsagePurpose::ClientAuth);
    assert_eq!(refused(shake(&good, &client)), expected);
    assert!(shake(&client, &good).is_ok());
    let server = only(ExtendedKeyUsagePurpose::ServerAuth);
    assert_eq!(refused(shake(&server, &good)), expected);
    assert!(shake(&good, &server).is_ok());
}

#[test]
fn a_peer_that_is_not_pinned_is_refused_with_the_reason() {
    let authority = Authority::new("ca");
    let b = authority.credentials(&wish("b"));
    let pinned = authority.trust().with_pins(&[b.certificate().fingerprint]);
    let a = end(&authority, &wish("a"), pinned, NOW);
    let clock = || Arc::new(Clock(NOW));
    let b = Configs::new(&b, authority.trust(), clock()).unwrap();
    let c = end(&authority, &wish("c"), authority.trust(), NOW);
    assert!(shake(&a, &b).is_ok());
    assert!(shake(&b, &a).is_ok());
    let told = refused(shake(&a, &c));
    assert_eq!(refusal(&told), Some(Refusal::NotPinned));
    refused(shake(&c, &a));
}

#[test]
fn a_client_without_certificate_is_refused() {
    let authority = Authority::new("ca");
    let server = end(&authority, &wish("b"), authority.trust(), NOW);
    let full = end(&authority, &wish("a"), authority.trust(), NOW);
    let mut bare = (*full.client).clone();
    bare.client_auth_cert_resolver = Arc::new(Nothing);
    let (mut client, mut end) = ends(Arc::new(bare), &server);
    let error = pump(&mut client, &mut end).unwrap_err();
    assert_eq!(error, Error::NoCertificatesPresented);
    assert_eq!(peer_ids(&end), Err(Refusal::NoCertificate));
    assert!(end.is_handshaking());
}

#[derive(Debug)]
struct Nothing;

impl rustls::client::ResolvesClientCert for Nothing {
    fn resolve(
        &self,
        _: &[&[u8]],
        _: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }
    fn has_certs(&self) -> bool {
        false
    }
}

#[test]
fn the_one_who_is_refused_is_told_why() {
    let authority = Authority::new("ca");
    let list = authority.revoke(&[9]);
    let knowing = authority.trust();
    let knowing = knowing.with_revocation_lists(list.as_bytes()).unwrap();
    let server = end(&authority, &wish("a"), knowing, NOW);
    let wish = Wish {
        serial: 9,
        ..wish("b")
    };
    let revoked = end(&authority, &wish, authority.trust(), NOW);
    let (mut client, mut server) = ends(Arc::clone(&revoked.client), &server);
    assert!(pump(&mut client, &mut server).is_err());
    let told = client.process_new_packets().unwrap_err();
    assert_eq!(
        told,
        Error::AlertReceived(AlertDescription::CertificateRevoked)
    );
}

#[test]
fn no_session_is_resumed() {
    let authority = Authority::new("ca");
    let a = end(&authority, &wish("a"), authority.trust(), NOW);
    let b = end(&authority, &wish("b"), authority.trust(), NOW);
    for _ in 0..3 {
        let (client, server) = shake(&a, &b).unwrap();
        for end in [&client, &server] {
            assert_eq!(
                end.handshake_kind()
                    .map(|kind| format!("{kind:?}"))
                    .as_deref(),
                Some("Full")
            );
        }
    }
}
