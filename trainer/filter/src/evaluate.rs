//! The value of a checked expression for one sample, by the rules of the CEL specification.
//!
//! Comes in: the expression, and the values of the fields that it names. Goes out: whether the sample passes, or why that cannot be said.
//! Of the specification's rules two are wider here: numbers of both kinds may be mixed in a calculation, and `&&` and `||` are the only
//! places where an error is passed over, as they are there.

use std::{borrow::Cow, cmp::Ordering};

use serde_json::{Map, Value};

use crate::node::{Arithmetic, Comparison, Function, Literal, Node, TextFunction, Walk};

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// A field is not there; its name.
    Missing(String),
    /// A value is of another type than is needed; what and which.
    WrongType(String),
    /// There is no result; why.
    NoValue(String),
}

/// A value.
#[derive(Clone, Debug)]
enum Val<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(Cow<'a, str>),
    List(&'a [Value]),
    Items(Vec<Val<'a>>),
    Map(&'a Map<String, Value>),
}

impl<'a> From<&'a Value> for Val<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(*value),
            // Whole numbers beyond 64 bits are doubles, as everywhere in JSON.
            Value::Number(number) => number.as_i64().map_or_else(|| Self::Double(number.as_f64().unwrap_or(f64::NAN)), Self::Int),
            Value::String(text) => Self::Text(Cow::Borrowed(text)),
            Value::Array(items) => Self::List(items),
            Value::Object(fields) => Self::Map(fields),
        }
    }
}

impl<'a> From<&'a Literal> for Val<'a> {
    fn from(literal: &'a Literal) -> Self {
        match literal {
            Literal::Null => Self::Null,
            Literal::Bool(value) => Self::Bool(*value),
            Literal::Int(value) => Self::Int(*value),
            Literal::Double(value) => Self::Double(*value),
            Literal::Text(text) => Self::Text(Cow::Borrowed(text)),
        }
    }
}

impl Val<'_> {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "true or false",
            Self::Int(_) | Self::Double(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) | Self::Items(_) => "a list",
            Self::Map(_) => "an object",
        }
    }

    const fn number(&self) -> Option<f64> {
        match self {
            Self::Int(value) => Some(*value as f64),
            Self::Double(value) => Some(*value),
            _ => None,
        }
    }

    fn items(&self) -> Option<Vec<Val<'_>>> {
        match self {
            Self::List(items) => Some(items.iter().map(Val::from).collect()),
            Self::Items(items) => Some(items.clone()),
            _ => None,
        }
    }

    fn equals(&self, other: &Val<'_>) -> bool {
        match (self, other) {
            (Self::Null, Val::Null) => true,
            (Self::Bool(left), Val::Bool(right)) => left == right,
            (Self::Int(left), Val::Int(right)) => left == right,
            (Self::Text(left), Val::Text(right)) => left == right,
            (Self::Map(left), Val::Map(right)) => left == right,
            (Self::List(_) | Self::Items(_), Val::List(_) | Val::Items(_)) => {
                let (left, right) = (self.items().unwrap_or_default(), other.items().unwrap_or_default());
                left.len() == right.len() && left.iter().zip(&right).all(|(left, right)| left.equals(right))
            }
            _ => self.number().zip(other.number()).is_some_and(|(left, right)| left.partial_cmp(&right) == Some(Ordering::Equal)),
        }
    }
}

/// Whether a sample passes whose sidecar has these values for these fields.
pub(crate) fn evaluate(root: &Node, fields: &[String], values: &[Option<Value>]) -> Result<bool, Failure> {
    Scope { fields, values, locals: None }.bool(root)
}

/// What names stand for.
struct Scope<'a> {
    fields: &'a [String],
    values: &'a [Option<Value>],
    locals: Option<[Val<'a>; 2]>,
}

type Evaluated<T> = Result<T, Failure>;

impl<'a> Scope<'a> {
    fn value(&self, node: &'a Node) -> Evaluated<Val<'a>> {
        Ok(match node {
            Node::Literal(literal) => literal.into(),
            Node::Field(number) => {
                let value = self.values.get(*number).and_then(Option::as_ref);
                value.map(Val::from).ok_or_else(|| Failure::Missing(self.name(*number).to_owned()))?
            }
            Node::HasField(number) => Val::Bool(self.values.get(*number).is_some_and(Option::is_some)),
            Node::Local(number) => self.locals.as_ref().and_then(|locals| locals.get(*number)).cloned().unwrap_or(Val::Null),
            Node::Select(object, field) => {
                let found = self.object(object)?.get(field.as_str());
                found.map(Val::from).ok_or_else(|| Failure::Missing(field.clone()))?
            }
            Node::Has(object, field) => Val::Bool(self.object(object)?.contains_key(field.as_str())),
            Node::Index(list, index) => self.index(list, index)?,
            Node::Not(value) => Val::Bool(!self.bool(value)?),
            Node::NotFalse(value) => Val::Bool(self.bool(value).unwrap_or(true)),
            Node::Negate(value) => match self.value(value)? {
                Val::Int(number) => Val::Int(number.checked_neg().ok_or_else(too_large)?),
                Val::Double(number) => Val::Double(-number),
                other => return Err(self.wrong(value, &other, "a number")),
            },
            Node::And(left, right) => Val::Bool(!self.either(left, right, false)?),
            Node::Or(left, right) => Val::Bool(self.either(left, right, true)?),
            Node::Choice(parts) => {
                let [condition, yes, no] = &**parts;
                self.value(if self.bool(condition)? { yes } else { no })?
            }
            Node::Equal(wanted, left, right) => Val::Bool(self.value(left)?.equals(&self.value(right)?) == *wanted),
            Node::Compare(comparison, left, right) => Val::Bool(self.compare(*comparison, left, right)?),
            Node::Arithmetic(operator, left, right) => self.calculate(*operator, left, right)?,
            Node::In(item, list) => {
                let (wanted, found) = (self.value(item)?, self.value(list)?);
                let items = found.items().ok_or_else(|| self.wrong(list, &found, "a list"))?;
                Val::Bool(items.iter().any(|item| item.equals(&wanted)))
            }
            Node::List(items) => Val::Items(items.iter().map(|item| self.value(item)).collect::<Evaluated<_>>()?),
            Node::Of(function, argument) => self.call(*function, argument)?,
            Node::OfTexts(function, text, part) => {
                let (text, part) = (self.text(text)?, self.text(part)?);
                Val::Bool(match function {
                    TextFunction::Contains => text.contains(&*part),
                    TextFunction::StartsWith => text.starts_with(&*part),
                    TextFunction::EndsWith => text.ends_with(&*part),
                })
            }
            Node::Matches(text, pattern) => Val::Bool(pattern.is_match(&self.text(text)?)),
            Node::Walk(walk) => self.walk(walk)?,
        })
    }

    fn name(&self, field: usize) -> &str {
        self.fields.get(field).map_or("", String::as_str)
    }

    /// A value that is of another type than is needed.
    fn wrong(&self, node: &Node, found: &Val<'_>, needed: &str) -> Failure {
        let name = match node {
            Node::Field(number) => self.name(*number),
            Node::Select(_, field) => field,
            _ => "a part of the expression",
        };
        Failure::WrongType(format!("{name} is {}, not {needed}", found.kind()))
    }

    fn bool(&self, node: &'a Node) -> Evaluated<bool> {
        match self.value(node)? {
            Val::Bool(value) => Ok(value),
            other => Err(self.wrong(node, &other, "true or false")),
        }
    }

    fn text(&self, node: &'a Node) -> Evaluated<Cow<'a, str>> {
        match self.value(node)? {
            Val::Text(text) => Ok(text),
            other => Err(self.wrong(node, &other, "a text")),
        }
    }

    fn object(&self, node: &'a Node) -> Evaluated<&'a Map<String, Value>> {
        match self.value(node)? {
            Val::Map(fields) => Ok(fields),
            other => Err(self.wrong(node, &other, "an object")),
        }
    }

    /// Whether either side has the value that decides: for `||` that is true, for `&&` false. A side that decides makes up for the other's
    /// error.
    fn either(&self, left: &'a Node, right: &'a Node, decides: bool) -> Evaluated<bool> {
        let first = self.bool(left);
        if first == Ok(decides) {
            return Ok(true);
        }
        let second = self.bool(right);
        if second == Ok(decides) {
            return Ok(true);
        }
        first.and(second).map(|_| false)
    }

    fn index(&self, list: &'a Node, index: &'a Node) -> Evaluated<Val<'a>> {
        let (found, at) = (self.value(list)?, self.value(index)?);
        match (&found, &at) {
            (Val::Map(fields), Val::Text(field)) => fields.get(&**field).map(Val::from).ok_or_else(|| Failure::Missing(field.to_string())),
            (Val::List(items), Val::Int(number)) => {
                let item = usize::try_from(*number).ok().and_then(|number| items.get(number));
                item.map(Val::from).ok_or_else(|| Failure::NoValue(format!("a list has no item {number}")))
            }
            (Val::Items(items), Val::Int(number)) => {
                let item = usize::try_from(*number).ok().and_then(|number| items.get(number));
                item.cloned().ok_or_else(|| Failure::NoValue(format!("a list has no item {number}")))
            }
            (Val::Map(_), _) => Err(self.wrong(index, &at, "a text")),
            (Val::List(_) | Val::Items(_), _) => Err(self.wrong(index, &at, "a whole number")),
            _ => Err(self.wrong(list, &found, "a list or an object")),
        }
    }

    fn compare(&self, comparison: Comparison, left: &'a Node, right: &'a Node) -> Evaluated<bool> {
        let (first, second) = (self.value(left)?, self.value(right)?);
        let order = match (&first, &second) {
            (Val::Int(first), Val::Int(second)) => Some(first.cmp(second)),
            (Val::Text(first), Val::Text(second)) => Some(first.cmp(second)),
            _ => match (first.number(), second.number()) {
                (Some(first), Some(second)) => first.partial_cmp(&second),
                (Some(_), None) => return Err(self.wrong(right, &second, "a number")),
                (None, Some(_)) => return Err(self.wrong(left, &first, "a number")),
                (None, None) if matches!(first, Val::Text(_)) => return Err(self.wrong(right, &second, "a text")),
                (None, None) => return Err(self.wrong(left, &first, "a number or a text")),
            },
        };
        Ok(order.is_some_and(|order| match comparison {
            Comparison::Less => order.is_lt(),
            Comparison::LessOrEqual => order.is_le(),
            Comparison::Greater => order.is_gt(),
            Comparison::GreaterOrEqual => order.is_ge(),
        }))
    }

    fn calculate(&self, operator: Arithmetic, left: &'a Node, right: &'a Node) -> Evaluated<Val<'a>> {
        let (first, second) = (self.value(left)?, self.value(right)?);
        match (&first, &second) {
            (Val::Int(first), Val::Int(second)) => {
                if matches!(operator, Arithmetic::Divide | Arithmetic::Remainder) && *second == 0 {
                    return Err(Failure::NoValue("a division by zero".to_owned()));
                }
                let result = match operator {
                    Arithmetic::Add => first.checked_add(*second),
                    Arithmetic::Subtract => first.checked_sub(*second),
                    Arithmetic::Multiply => first.checked_mul(*second),
                    Arithmetic::Divide => first.checked_div(*second),
                    Arithmetic::Remainder => first.checked_rem(*second),
                };
                result.map(Val::Int).ok_or_else(too_large)
            }
            (Val::Text(first), Val::Text(second)) if operator == Arithmetic::Add => Ok(Val::Text(Cow::Owned(format!("{first}{second}")))),
            _ => {
                let number = |node, value: &Val<'_>| value.number().ok_or_else(|| self.wrong(node, value, "a number"));
                let (first, second) = (number(left, &first)?, number(right, &second)?);
                Ok(Val::Double(match operator {
                    Arithmetic::Add => first + second,
                    Arithmetic::Subtract => first - second,
                    Arithmetic::Multiply => first * second,
                    Arithmetic::Divide => first / second,
                    Arithmetic::Remainder => return Err(Failure::WrongType("`%` is for whole numbers".to_owned())),
                }))
            }
        }
    }

    fn call(&self, function: Function, argument: &'a Node) -> Evaluated<Val<'a>> {
        let value = self.value(argument)?;
        let no_number = |text: &str| Failure::NoValue(format!("{text:?} is no number"));
        Ok(match (function, &value) {
            // Of a text its characters, as the specification has it.
            (Function::Size, Val::Text(text)) => Val::Int(text.chars().count() as i64),
            (Function::Size, Val::List(items)) => Val::Int(items.len() as i64),
            (Function::Size, Val::Items(items)) => Val::Int(items.len() as i64),
            (Function::Size, Val::Map(fields)) => Val::Int(fields.len() as i64),
            (Function::Size, _) => return Err(self.wrong(argument, &value, "a text, a list or an object")),
            (Function::LowerAscii, Val::Text(text)) => Val::Text(Cow::Owned(text.to_ascii_lowercase())),
            (Function::LowerAscii, _) => return Err(self.wrong(argument, &value, "a text")),
            (Function::Int, Val::Int(number)) => Val::Int(*number),
            (Function::Int, Val::Double(number)) if number.abs() < 2_f64.powi(63) => Val::Int(number.trunc() as i64),
            (Function::Int, Val::Double(_)) => return Err(too_large()),
            (Function::Int, Val::Text(text)) => Val::Int(text.parse().map_err(|_| no_number(text))?),
            (Function::Double, Val::Text(text)) => Val::Double(text.parse().map_err(|_| no_number(text))?),
            (Function::Double, _) if value.number().is_some() => Val::Double(value.number().unwrap_or_default()),
            (Function::String, Val::Text(text)) => Val::Text(text.clone()),
            (Function::String, Val::Int(number)) => Val::Text(Cow::Owned(number.to_string())),
            (Function::String, Val::Double(number)) => Val::Text(Cow::Owned(number.to_string())),
            (Function::String, Val::Bool(value)) => Val::Text(Cow::Owned(value.to_string())),
            (Function::Int | Function::Double | Function::String, _) => return Err(self.wrong(argument, &value, "a number or a text")),
        })
    }

    fn walk(&self, walk: &'a Walk) -> Evaluated<Val<'a>> {
        let scope = |collected: Val<'a>, item: Val<'a>| Scope { locals: Some([collected, item]), ..*self };
        let (mut collected, mut failed) = (Val::from(&walk.begin), None);
        for item in &walk.items {
            let inner = scope(collected.clone(), self.value(item)?);
            if !inner.bool(&walk.goes_on)? {
                break;
            }
            match inner.value(&walk.step) {
                Ok(value) => collected = value,
                // As with `||` and `&&`: another item may decide.
                Err(error) if matches!(walk.begin, Literal::Bool(_)) => failed = failed.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        let result = scope(collected, Val::Null).value(&walk.result)?;
        match failed {
            Some(error) if result.equals(&Val::from(&walk.begin)) => Err(error),
            _ => Ok(result),
        }
    }
}

fn too_large() -> Failure {
    Failure::NoValue("a whole number beyond 64 bits".to_owned())
}
