//! Answers to an operator's questions, in the words of the control protocol.

use receptor_proto::control::{PolicyCommand, PolicyReply};
use receptor_proto::{ErrorBody, ErrorCode, NodeId};

use super::{Answer, Because, Person, Right, Rules};

/// What the rules of the node `node`, whose daemon runs as the user `own`, say to a question.
///
/// # Errors
///
/// When it is none, or several at once.
pub fn explain(
    rules: &Rules,
    node: Option<&NodeId>,
    own: u32,
    question: &PolicyCommand,
) -> Result<PolicyReply, ErrorBody> {
    let PolicyCommand {
        from,
        directive,
        to,
        link,
        user,
    } = question;
    let away = to.as_ref().filter(|to| Some(*to) != node);
    match (from, directive, away, link, user) {
        (Some(from), _, Some(to), None, None) => Ok(reply(
            "allow-transit",
            rules.may_pass(from.as_str(), to.as_str()),
        )),
        (Some(from), Some(directive), None, None, None) => Ok(reply(
            "allow",
            rules.may_use(from.as_str(), directive.as_str()),
        )),
        (None, None, None, Some(link), None) => {
            Ok(reply("allow-link", rules.may_link(link.as_str())))
        }
        (None, None, None, None, Some(user)) => {
            let person = Person {
                uid: user.uid,
                gids: user.gids.clone(),
            };
            let Answer { says, because } = rules.right(&person, own);
            let permitted = Answer {
                says: says > Right::Nothing,
                because,
            };
            Ok(PolicyReply {
                right: Some(says.as_str().to_owned()),
                ..reply("allow-control", permitted)
            })
        }
        _ => {
            let text = "policy needs from with directive or with to another node, or link, or user";
            Err(ErrorBody::new(ErrorCode::InvalidRequest, text))
        }
    }
}

fn reply(kind: &str, answer: Answer<'_, bool>) -> PolicyReply {
    let rule = match answer.because {
        Because::Rule(_, place) => Some(place.to_string()),
        Because::NoRules(_) | Because::NoneFits(_) | Because::Always => None,
    };
    PolicyReply {
        kind: kind.to_owned(),
        permitted: answer.says,
        right: None,
        rule,
        because: answer.because.to_string(),
    }
}
