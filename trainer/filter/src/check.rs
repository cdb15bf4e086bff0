//! From what the parser gives to an expression that can be evaluated: unknown names and types that cannot fit are found here.
//!
//! Comes in: the parser's tree. Goes out: a [`Node`] and the fields that it names, or the first fault. A field may have any type, but not two:
//! one that is compared with a number in one place and with a text's function in another is a mistake.

use std::fmt;

use cel::{
    IdedExpr,
    common::ast::{CallExpr, ComprehensionExpr, Expr, LiteralValue, SelectExpr, operators},
};
use regex::Regex;

use crate::{
    FilterError,
    node::{Arithmetic, Comparison, Function, Literal, Node, TextFunction, Walk},
};

/// The name of the whole object, whose fields have their own names as well.
const OBJECT: &str = "json";

/// What is known of a value before there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Any,
    Null,
    Bool,
    Number,
    Text,
    List,
    Object,
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "anything",
            Self::Null => "null",
            Self::Bool => "true or false",
            Self::Number => "a number",
            Self::Text => "a text",
            Self::List => "a list",
            Self::Object => "an object",
        })
    }
}

type Typed = (Node, Type);
type Checked<T> = Result<T, FilterError>;

/// Checks an expression.
#[derive(Default)]
pub(crate) struct Checker {
    fields: Vec<String>,
    /// Of every field what it has to be, and where nothing says so nothing.
    uses: Vec<Option<Type>>,
    /// Names of the variables of the walk around a part, and the type of its items.
    walk: Option<([String; 2], Type)>,
}

/// The parts of `condition ? yes : no`.
fn choice(expression: &IdedExpr) -> Option<&[IdedExpr; 3]> {
    let Expr::Call(call) = &expression.expr else { return None };
    (call.func_name == operators::CONDITIONAL).then(|| call.args.as_slice().try_into().ok()).flatten()
}

fn type_error(text: impl Into<String>) -> FilterError {
    FilterError::Type(text.into())
}

impl Checker {
    pub(crate) fn fields(&self) -> &[String] {
        &self.fields
    }

    pub(crate) fn into_fields(self) -> Vec<String> {
        self.fields
    }

    /// The whole expression, which says yes or no.
    pub(crate) fn root(&mut self, expression: &IdedExpr) -> Checked<Node> {
        self.of_type(expression, Type::Bool, "the expression")
    }

    /// A part that has to be of a type; `what` it is, for messages.
    fn of_type(&mut self, expression: &IdedExpr, wanted: Type, what: &str) -> Checked<Node> {
        if let Some([condition, yes, no]) = choice(expression) {
            // Whichever it comes to.
            let condition = self.condition(condition)?;
            let (yes, no) = (self.of_type(yes, wanted, what)?, self.of_type(no, wanted, what)?);
            return Ok(Node::Choice(Box::new([condition, yes, no])));
        }
        let typed = self.node(expression)?;
        self.want(&typed, wanted, what)?;
        Ok(typed.0)
    }

    fn condition(&mut self, expression: &IdedExpr) -> Checked<Node> {
        self.of_type(expression, Type::Bool, "the condition of `?`")
    }

    fn want(&mut self, (node, found): &Typed, wanted: Type, what: &str) -> Checked<()> {
        if *found != Type::Any && *found != wanted {
            return Err(type_error(format!("{what} must be {wanted}, and is {found}")));
        }
        let Node::Field(number) = node else { return Ok(()) };
        let Some(place) = self.uses.get_mut(*number) else { return Ok(()) };
        match place {
            Some(before) if *before != wanted => {
                let name = self.fields.get(*number).map_or("", String::as_str);
                Err(type_error(format!("{name} is {before} in one place and {wanted} in another")))
            }
            _ => {
                *place = Some(wanted);
                Ok(())
            }
        }
    }

    fn field(&mut self, name: &str) -> usize {
        let known = self.fields.iter().position(|field| field == name);
        known.unwrap_or_else(|| {
            self.fields.push(name.to_owned());
            self.uses.push(None);
            self.fields.len() - 1
        })
    }

    fn node(&mut self, expression: &IdedExpr) -> Checked<Typed> {
        match &expression.expr {
            Expr::Literal(literal) => written(literal),
            Expr::Ident(name) => self.name(name),
            Expr::Select(select) => self.select(select),
            Expr::List(list) => {
                let items = list.elements.iter().map(|item| Ok(self.node(item)?.0)).collect::<Checked<_>>()?;
                Ok((Node::List(items), Type::List))
            }
            Expr::Call(call) => self.call(call),
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
            Expr::Map(_) | Expr::Struct(_) | Expr::Unspecified => {
                Err(FilterError::NotAvailable { what: "objects that are written in it", instead: "compare their fields one by one" })
            }
        }
    }

    fn name(&mut self, name: &str) -> Checked<Typed> {
        if let Some((names, items)) = &self.walk
            && let Some(number) = names.iter().position(|variable| variable == name)
        {
            return Ok((Node::Local(number), if number == 1 { *items } else { Type::Any }));
        }
        if name == OBJECT {
            return Err(FilterError::NotAvailable {
                what: "json as a whole",
                instead: "name a field of it, json.similarity or json[\"a b\"]",
            });
        }
        Ok((Node::Field(self.field(name)), Type::Any))
    }

    /// Whether an expression is the whole object.
    fn is_object(&self, expression: &IdedExpr) -> bool {
        let is_variable = self.walk.as_ref().is_some_and(|(names, _)| names.iter().any(|name| name == OBJECT));
        !is_variable && matches!(&expression.expr, Expr::Ident(name) if name == OBJECT)
    }

    fn select(&mut self, SelectExpr { operand, field, test }: &SelectExpr) -> Checked<Typed> {
        if self.is_object(operand) {
            let number = self.field(field);
            return Ok(if *test { (Node::HasField(number), Type::Bool) } else { (Node::Field(number), Type::Any) });
        }
        let object = Box::new(self.of_type(operand, Type::Object, "what has fields")?);
        Ok(if *test { (Node::Has(object, field.clone()), Type::Bool) } else { (Node::Select(object, field.clone()), Type::Any) })
    }

    fn comprehension(&mut self, comprehension: &ComprehensionExpr) -> Checked<Typed> {
        let Expr::List(list) = &comprehension.iter_range.expr else {
            let what = "all, exists and exists_one over a list of the sample";
            return Err(FilterError::NotAvailable { what, instead: "walk over a list that is written in the expression" });
        };
        let begin = match &comprehension.accu_init.expr {
            Expr::Literal(LiteralValue::Boolean(value)) => Literal::Bool(*value.inner()),
            Expr::Literal(LiteralValue::Int(value)) => Literal::Int(*value.inner()),
            _ => return Err(FilterError::NotAvailable { what: "map and filter", instead: "use all, exists or exists_one" }),
        };
        if self.walk.is_some() {
            return Err(FilterError::NotAvailable {
                what: "all, exists and exists_one within one another",
                instead: "write out the inner one",
            });
        }
        let items = list.elements.iter().map(|item| self.node(item)).collect::<Checked<Vec<_>>>()?;
        let mut types = items.iter().map(|(_, of)| *of);
        let of = types.next().filter(|first| types.all(|other| other == *first)).unwrap_or(Type::Any);
        self.walk = Some(([comprehension.accu_var.clone(), comprehension.iter_var.clone()], of));
        let goes_on = self.of_type(&comprehension.loop_cond, Type::Bool, "a condition")?;
        let (step, _) = self.node(&comprehension.loop_step)?;
        let result = self.of_type(&comprehension.result, Type::Bool, "a result")?;
        self.walk = None;
        let items = items.into_iter().map(|(item, _)| item).collect();
        Ok((Node::Walk(Box::new(Walk { items, begin, goes_on, step, result })), Type::Bool))
    }

    fn call(&mut self, call: &CallExpr) -> Checked<Typed> {
        if call.target.is_none()
            && let Some(node) = self.operator(call)?
        {
            return Ok(node);
        }
        let name = call.func_name.as_str();
        // Both ways of calling: `size(x)` and `x.size()`.
        let arguments: Vec<&IdedExpr> = call.target.as_deref().into_iter().chain(&call.args).collect();
        let wrong = |usage| Err(FilterError::Arguments { name: name.to_owned(), usage });
        let of = |function| match (name, arguments.as_slice()) {
            ("size" | "lowerAscii", [argument]) => Some((function, *argument)),
            (_, [argument]) if call.target.is_none() => Some((function, *argument)),
            _ => None,
        };
        let (function, gives) = match name {
            "size" => (Function::Size, Type::Number),
            "lowerAscii" => (Function::LowerAscii, Type::Text),
            "int" => (Function::Int, Type::Number),
            "double" => (Function::Double, Type::Number),
            "string" => (Function::String, Type::Text),
            "contains" | "startsWith" | "endsWith" | "matches" => return self.text_function(call),
            _ => return Err(FilterError::UnknownFunction { name: name.to_owned() }),
        };
        let Some((function, argument)) = of(function) else {
            return wrong(match function {
                Function::Size => "size(caption)",
                Function::LowerAscii => "NSFW.lowerAscii()",
                Function::Int => "int(width)",
                Function::Double => "double(width)",
                Function::String => "string(width)",
            });
        };
        let typed = self.node(argument)?;
        if function == Function::LowerAscii {
            self.want(&typed, Type::Text, "what lowerAscii is called on")?;
        }
        Ok((Node::Of(function, Box::new(typed.0)), gives))
    }

    /// A function that is called on a text with another one.
    fn text_function(&mut self, call: &CallExpr) -> Checked<Typed> {
        let name = call.func_name.as_str();
        let (Some(text), [part]) = (&call.target, call.args.as_slice()) else {
            let usage = if name == "matches" { "caption.matches(\"^A \")" } else { "caption.contains(\"cat\"), and so on" };
            return Err(FilterError::Arguments { name: name.to_owned(), usage });
        };
        let text = Box::new(self.of_type(text, Type::Text, "what is searched")?);
        if name == "matches" {
            let Expr::Literal(LiteralValue::String(pattern)) = &part.expr else {
                return Err(FilterError::NotAvailable { what: "patterns of the sample", instead: "write the regular expression out" });
            };
            let pattern = Regex::new(pattern.inner()).map_err(|error| pattern_error(&error))?;
            return Ok((Node::Matches(text, pattern), Type::Bool));
        }
        let part = Box::new(self.of_type(part, Type::Text, "what is searched for")?);
        let function = match name {
            "contains" => TextFunction::Contains,
            "startsWith" => TextFunction::StartsWith,
            _ => TextFunction::EndsWith,
        };
        Ok((Node::OfTexts(function, text, part), Type::Bool))
    }

    fn operator(&mut self, call: &CallExpr) -> Checked<Option<Typed>> {
        let name = call.func_name.as_str();
        Ok(Some(match (name, call.args.as_slice()) {
            (operators::LOGICAL_NOT, [value]) => (Node::Not(self.boxed(value, Type::Bool, "what `!` turns round")?), Type::Bool),
            (operators::NOT_STRICTLY_FALSE, [value]) => (Node::NotFalse(self.boxed(value, Type::Bool, "a condition")?), Type::Bool),
            (operators::NEGATE, [value]) => (Node::Negate(self.boxed(value, Type::Number, "what `-` turns round")?), Type::Number),
            (operators::LOGICAL_AND, [left, right]) => {
                let what = "each side of `&&`";
                (Node::And(self.boxed(left, Type::Bool, what)?, self.boxed(right, Type::Bool, what)?), Type::Bool)
            }
            (operators::LOGICAL_OR, [left, right]) => {
                let what = "each side of `||`";
                (Node::Or(self.boxed(left, Type::Bool, what)?, self.boxed(right, Type::Bool, what)?), Type::Bool)
            }
            (operators::CONDITIONAL, [condition, yes, no]) => {
                let condition = self.condition(condition)?;
                let (yes, no) = (self.node(yes)?, self.node(no)?);
                let known = if yes.1 == Type::Any { no.1 } else { yes.1 };
                let may_be_null = [yes.1, no.1].contains(&Type::Null);
                if known != Type::Any && !may_be_null {
                    self.want(&yes, known, "each result of `?`")?;
                    self.want(&no, known, "each result of `?`")?;
                }
                (Node::Choice(Box::new([condition, yes.0, no.0])), if may_be_null { Type::Any } else { known })
            }
            (operators::EQUALS | operators::NOT_EQUALS, [left, right]) => self.equality(name == operators::EQUALS, left, right)?,
            (operators::LESS, [left, right]) => self.comparison(Comparison::Less, left, right)?,
            (operators::LESS_EQUALS, [left, right]) => self.comparison(Comparison::LessOrEqual, left, right)?,
            (operators::GREATER, [left, right]) => self.comparison(Comparison::Greater, left, right)?,
            (operators::GREATER_EQUALS, [left, right]) => self.comparison(Comparison::GreaterOrEqual, left, right)?,
            (operators::ADD, [left, right]) => self.arithmetic(Arithmetic::Add, left, right)?,
            (operators::SUBSTRACT, [left, right]) => self.arithmetic(Arithmetic::Subtract, left, right)?,
            (operators::MULTIPLY, [left, right]) => self.arithmetic(Arithmetic::Multiply, left, right)?,
            (operators::DIVIDE, [left, right]) => self.arithmetic(Arithmetic::Divide, left, right)?,
            (operators::MODULO, [left, right]) => self.arithmetic(Arithmetic::Remainder, left, right)?,
            (operators::IN, [item, list]) => {
                let (item, _) = self.node(item)?;
                (Node::In(Box::new(item), self.boxed(list, Type::List, "what stands behind `in`")?), Type::Bool)
            }
            (operators::INDEX, [list, index]) => self.index(list, index)?,
            _ => return Ok(None),
        }))
    }

    fn boxed(&mut self, expression: &IdedExpr, wanted: Type, what: &str) -> Checked<Box<Node>> {
        self.of_type(expression, wanted, what).map(Box::new)
    }

    fn index(&mut self, list: &IdedExpr, index: &IdedExpr) -> Checked<Typed> {
        if self.is_object(list) {
            let Expr::Literal(LiteralValue::String(name)) = &index.expr else {
                return Err(FilterError::NotAvailable { what: "fields whose names are not written out", instead: "use json[\"a b\"]" });
            };
            return Ok((Node::Field(self.field(name.inner())), Type::Any));
        }
        let ((list, of), at) = (self.node(list)?, self.node(index)?);
        match of {
            Type::Any => {}
            Type::List => self.want(&at, Type::Number, "the index of a list")?,
            other => return Err(type_error(format!("what has an index must be a list or an object, and is {other}"))),
        }
        Ok((Node::Index(Box::new(list), Box::new(at.0)), Type::Any))
    }

    fn equality(&mut self, wanted: bool, left: &IdedExpr, right: &IdedExpr) -> Checked<Typed> {
        let ((left, first), (right, second)) = (self.node(left)?, self.node(right)?);
        let may_be_equal = first == second || [first, second].iter().any(|of| matches!(of, Type::Any | Type::Null));
        if !may_be_equal {
            return Err(type_error(format!("{first} is never equal to {second}")));
        }
        Ok((Node::Equal(wanted, Box::new(left), Box::new(right)), Type::Bool))
    }

    fn comparison(&mut self, comparison: Comparison, left: &IdedExpr, right: &IdedExpr) -> Checked<Typed> {
        let (left, right) = self.alike(left, right, "each side of a comparison")?;
        Ok((Node::Compare(comparison, Box::new(left.0), Box::new(right.0)), Type::Bool))
    }

    fn arithmetic(&mut self, operator: Arithmetic, left: &IdedExpr, right: &IdedExpr) -> Checked<Typed> {
        if operator == Arithmetic::Add {
            let (left, right) = self.alike(left, right, "each side of `+`")?;
            let of = if left.1 == Type::Any { right.1 } else { left.1 };
            return Ok((Node::Arithmetic(operator, Box::new(left.0), Box::new(right.0)), of));
        }
        let what = "each side of a calculation";
        let (left, right) = (self.boxed(left, Type::Number, what)?, self.boxed(right, Type::Number, what)?);
        Ok((Node::Arithmetic(operator, left, right), Type::Number))
    }

    /// Two numbers or two texts: where one is known, the other has to be the same.
    fn alike(&mut self, left: &IdedExpr, right: &IdedExpr, what: &str) -> Checked<(Typed, Typed)> {
        let (left, right) = (self.node(left)?, self.node(right)?);
        let known = if left.1 == Type::Any { right.1 } else { left.1 };
        match known {
            Type::Any => {}
            Type::Number | Type::Text => {
                self.want(&left, known, what)?;
                self.want(&right, known, what)?;
            }
            other => return Err(type_error(format!("{what} must be a number or a text, and is {other}"))),
        }
        Ok((left, right))
    }
}

fn written(literal: &LiteralValue) -> Checked<Typed> {
    Ok(match literal {
        LiteralValue::Boolean(value) => (Node::Literal(Literal::Bool(*value.inner())), Type::Bool),
        LiteralValue::Int(value) => (Node::Literal(Literal::Int(*value.inner())), Type::Number),
        LiteralValue::UInt(value) => {
            let value = *value.inner();
            (Node::Literal(i64::try_from(value).map_or(Literal::Double(value as f64), Literal::Int)), Type::Number)
        }
        LiteralValue::Double(value) => (Node::Literal(Literal::Double(*value.inner())), Type::Number),
        LiteralValue::String(value) => (Node::Literal(Literal::Text(value.inner().to_owned())), Type::Text),
        LiteralValue::Null => (Node::Literal(Literal::Null), Type::Null),
        LiteralValue::Bytes(_) => return Err(FilterError::NotAvailable { what: "bytes", instead: "compare texts" }),
    })
}

/// The last line of what the library says, which has the reason; those before show the pattern.
fn pattern_error(error: &regex::Error) -> FilterError {
    let text = error.to_string();
    let reason = text.lines().last().unwrap_or_default();
    FilterError::Pattern(reason.strip_prefix("error: ").unwrap_or(reason).to_owned())
}
