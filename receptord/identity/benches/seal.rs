//! What sealing costs over the bare cipher, in the same run: `cargo bench -p receptor-identity`.
//!
//! Prints for a small message and a large segment the time of ring's AES-256-GCM alone, of sealing and of opening, and
//! the ratios. Then what the public-key work takes, which is done once a context or statement.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench prints, and fails by panicking"
)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use receptor_identity::{Credentials, Member, OVERHEAD, SealKeys, Trust, UnixTime};
use receptor_proto::NodeId;
use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, LessSafeKey, Nonce, UnboundKey};

/// Rounds whose best counts: other work on the machine only adds time.
const ROUNDS: usize = 15;

/// Nanoseconds of one call, best of the rounds.
fn time(calls: u32, mut call: impl FnMut()) -> f64 {
    let round = |call: &mut dyn FnMut()| {
        let start = Instant::now();
        (0..calls).for_each(|_| call());
        start.elapsed() / calls
    };
    let best = (0..ROUNDS).map(|_| round(&mut call)).min();
    best.unwrap_or_default().as_secs_f64() * 1e9
}

fn bare(algorithm: &'static Algorithm, size: usize, calls: u32) -> f64 {
    let key = LessSafeKey::new(UnboundKey::new(algorithm, &vec![7; algorithm.key_len()]).unwrap());
    let plain = vec![1; size];
    let mut out = Vec::with_capacity(size + OVERHEAD);
    let mut counter = 0u64;
    time(calls, || {
        counter += 1;
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&counter.to_be_bytes());
        out.clear();
        out.extend_from_slice(&plain);
        let nonce = Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_append_tag(nonce, Aad::from([3; 64]), &mut out)
            .unwrap();
        black_box(&out);
    })
}

fn main() {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let now = UnixTime::now();
    let uptime = Duration::ZERO;
    let (a, b) = (
        NodeId::new("node-a").unwrap(),
        NodeId::new("node-b").unwrap(),
    );
    let member = |node: &NodeId| {
        let mut params = CertificateParams::default();
        let uri = format!("receptor:{node}").try_into().unwrap();
        params.subject_alt_names = vec![SanType::URI(uri)];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        let own =
            Credentials::from_pem(certificate.pem().as_bytes(), key.serialize_pem().as_bytes());
        let trust = Trust::new(authority.pem().as_bytes()).unwrap();
        let keys = SealKeys::generate(0);
        Member::new(node.clone(), Arc::new(own.unwrap()), trust, keys).unwrap()
    };
    let (mut sender, mut recipient) = (member(&a), member(&b));
    let (of_a, of_b) = (
        sender.statement(1).unwrap(),
        recipient.statement(1).unwrap(),
    );
    sender.learn(&b, &of_b, now).unwrap();
    recipient.learn(&a, &of_a, now).unwrap();

    println!("  size  aes-128-gcm  aes-256-gcm     seal      ratio     open      ratio");
    for (size, calls) in [(128, 20_000), (65_536, 200)] {
        let floor_128 = bare(&AES_128_GCM, size, calls);
        let floor = bare(&AES_256_GCM, size, calls);
        let plain = vec![1; size];
        let mut out = Vec::with_capacity(size + OVERHEAD);
        let seal = time(calls, || {
            out.clear();
            sender
                .seal(&b, &[3; 64], &[&plain], &mut out, uptime)
                .unwrap();
            black_box(&out);
        });
        let mut packet = out.clone();
        let open = time(calls, || {
            packet.copy_from_slice(&out);
            black_box(recipient.open(&a, &[3; 64], &mut packet, uptime).unwrap());
        });
        println!(
            "{size:6}  {floor_128:8.0} ns  {floor:8.0} ns  {seal:8.0} ns  {:.2}  {open:8.0} ns  {:.2}",
            seal / floor,
            open / floor
        );
    }

    println!();
    let signature = sender.sign(&[1; 200]).unwrap();
    let mut keys = SealKeys::generate(0);
    let mut number = 1;
    let context = time(20, || {
        // A new key of its own makes the next seal begin a context.
        keys = SealKeys::generate(number);
        number += 1;
        sender.with_seal_keys(|kept| std::mem::swap(kept, &mut keys));
        let mut out = Vec::new();
        sender.seal(&b, b"", &[], &mut out, uptime).unwrap();
    });
    println!("key pair and new context   {:7.1} us", context / 1e3);
    let sign = time(20, || drop(black_box(sender.sign(&[1; 200]).unwrap())));
    println!("sign (ECDSA P-256)         {:7.1} us", sign / 1e3);
    let verify = time(20, || recipient.verify(&a, &[1; 200], &signature).unwrap());
    println!("verify (ECDSA P-256)       {:7.1} us", verify / 1e3);
    let learn = time(20, || {
        recipient.forget(&a);
        recipient.learn(&a, &of_a, now).unwrap();
    });
    println!("learn a statement          {:7.1} us", learn / 1e3);
}
