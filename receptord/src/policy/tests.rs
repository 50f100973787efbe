//! Owns the cases of rules and questions. Never asks a daemon.

use std::path::Path;

use proptest::prelude::*;
use receptor_proto::ErrorCode;
use receptor_proto::control::PolicyCommand;

use super::*;

fn place(line: usize) -> Source {
    Source::File {
        path: Path::new("/etc/receptor/receptord.toml").into(),
        line,
    }
}

fn patterns(list: &[&str]) -> Vec<Pattern> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

fn rule<W, V>(whom: W, says: V, line: usize) -> Rule<W, V> {
    Rule {
        whom,
        says,
        place: place(line),
    }
}

fn usage(from: &[&str], directive: &[&str]) -> Use {
    Use {
        from: patterns(from),
        directive: patterns(directive),
    }
}

fn one(id: u32) -> Principal {
    Principal::One {
        written: id.to_string(),
        id: Some(id),
    }
}

#[test]
fn without_a_rule_of_a_kind_everything_of_that_kind_is_permitted() {
    let rules = Rules::default();
    assert!(rules.may_use("edge", "shell:run").says);
    assert!(rules.may_link("edge").says);
    assert!(rules.may_pass("a", "b").says);
    let person = Person {
        uid: 1000,
        gids: vec![1000],
    };
    let answer = rules.right(&person, 7);
    assert_eq!(answer.says, Right::Administer);
    assert_eq!(answer.because, Because::NoRules("allow-control"));
    // Rules of one kind say nothing of another.
    let rules = Rules {
        link: vec![rule(Link { node: Vec::new() }, true, 1)],
        ..Rules::default()
    };
    assert!(rules.may_use("edge", "shell:run").says);
    assert!(!rules.may_link("edge").says);
}

#[test]
fn the_first_rule_that_fits_decides_and_is_named() {
    let rules = Rules {
        allow: vec![
            rule(usage(&["controller-old"], &["*"]), false, 3),
            rule(usage(&["controller*", "ops"], &["runner:*"]), true, 7),
            rule(usage(&["ops"], &["runner:*", "shell:run"]), false, 11),
        ],
        ..Rules::default()
    };
    let table = [
        ("controller-1", "runner:execute", true, "receptord.toml:7"),
        (
            "controller-old",
            "runner:execute",
            false,
            "receptord.toml:3",
        ),
        ("ops", "runner:execute", true, "receptord.toml:7"),
        ("ops", "shell:run", false, "receptord.toml:11"),
        (
            "edge",
            "runner:execute",
            false,
            "no [[allow]] rule permits it",
        ),
        (
            "controller-1",
            "shell:run",
            false,
            "no [[allow]] rule permits it",
        ),
    ];
    for (from, directive, expected, why) in table {
        let answer = rules.may_use(from, directive);
        assert_eq!(answer.says, expected, "{from} {directive}");
        let because = answer.because.to_string();
        assert!(because.contains(why), "{from} {directive}: {because}");
    }
}

#[test]
fn transit_is_for_both_directions() {
    let whom = Transit {
        from: patterns(&["controller*"]),
        to: patterns(&["edge-*"]),
    };
    let rules = Rules {
        transit: vec![rule(whom, true, 1)],
        ..Rules::default()
    };
    assert!(rules.may_pass("controller", "edge-1").says);
    assert!(rules.may_pass("edge-1", "controller").says);
    assert!(!rules.may_pass("edge-1", "edge-2").says);
    assert!(!rules.may_pass("controller", "controller-2").says);
}

#[test]
fn users_groups_and_those_who_always_may() {
    let people = |user: &[u32], group: &[u32]| People {
        user: user.iter().copied().map(one).collect(),
        group: group.iter().copied().map(one).collect(),
    };
    let nobody = Principal::One {
        written: "ghost".to_owned(),
        id: None,
    };
    let rules = Rules {
        control: vec![
            rule(people(&[1001], &[]), Right::Nothing, 1),
            rule(people(&[1000], &[27]), Right::Administer, 2),
            rule(people(&[], &[50, 51]), Right::Send, 3),
            rule(
                People {
                    user: vec![nobody, Principal::Any],
                    group: Vec::new(),
                },
                Right::Look,
                4,
            ),
        ],
        ..Rules::default()
    };
    let table: [(u32, &[u32], Right); 7] = [
        (1001, &[27, 50], Right::Nothing),
        (1000, &[], Right::Administer),
        (5, &[1, 27], Right::Administer),
        (5, &[51], Right::Send),
        (5, &[], Right::Look),
        (0, &[], Right::Administer),
        (999, &[], Right::Administer),
    ];
    for (uid, gids, expected) in table {
        let gids = gids.to_vec();
        let person = Person { uid, gids };
        assert_eq!(rules.right(&person, 999).says, expected, "{person:?}");
    }
    assert!(Right::Nothing < Right::Look && Right::Look < Right::Send);
    assert!(Right::Send < Right::Administer);
}

proptest! {
    #[test]
    fn first_match_and_default_deny(
        list in proptest::collection::vec(("[ab*?]{1,3}", "[xy*]:[xy*]", proptest::bool::ANY), 0..6),
        from in "[ab]{1,3}",
        directive in "[xy]:[xy]",
    ) {
        let allow = list.iter().enumerate().map(|(line, (from, directive, says))| {
            rule(usage(&[from], &[directive]), *says, line + 1)
        });
        let rules = Rules { allow: allow.collect(), ..Rules::default() };
        let fits = |pattern: &str, name: &str| pattern.parse::<Pattern>().unwrap().matches(name);
        let first = list.iter().position(|(f, d, _)| fits(f, &from) && fits(d, &directive));
        let answer = rules.may_use(&from, &directive);
        match first {
            Some(index) => {
                prop_assert_eq!(answer.says, list[index].2);
                prop_assert_eq!(answer.because, Because::Rule("allow", &place(index + 1)));
            }
            None if list.is_empty() => prop_assert!(answer.says),
            None => prop_assert!(!answer.says),
        }
    }
}

#[test]
fn questions_that_are_none_or_several_are_refused() {
    let node = |name: &str| Some(NodeId::new(name).unwrap());
    let own = node("here");
    let ask = |question: &PolicyCommand| explain(&Rules::default(), own.as_ref(), 7, question);
    let directive = Some(Directive::new("a:b").unwrap());
    let empty = PolicyCommand::default;
    for bad in [
        empty(),
        PolicyCommand {
            from: node("x"),
            ..empty()
        },
        PolicyCommand {
            from: node("x"),
            to: node("here"),
            ..empty()
        },
        PolicyCommand {
            directive: directive.clone(),
            ..empty()
        },
        PolicyCommand {
            from: node("x"),
            directive: directive.clone(),
            link: node("y"),
            ..empty()
        },
    ] {
        let error = ask(&bad).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidRequest, "{bad:?}");
    }
    let good = PolicyCommand {
        from: node("x"),
        to: node("here"),
        directive,
        ..empty()
    };
    assert_eq!(ask(&good).unwrap().kind, "allow");
}
